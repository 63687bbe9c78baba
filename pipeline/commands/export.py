"""Writes a run's network as a file for other programs, and checks that it gives the same logits."""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from pipeline.commands.arguments import add_ema, add_run, check_output_folder, check_run
from pipeline.process.fast_import import imports_uncollected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_ema(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=("safetensors", "hub", "torch-export", "onnx"),
        help="kind of file; `hub`: a folder for the Hugging Face Hub",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder to write to (default: export/FORMAT in the run folder, or NAME-FORMAT here)",
    )
    parser.add_argument(
        "--input",
        default="unit",
        choices=("unit", "normalised"),
        help="images that the exported network takes: `unit`: RGB from 0 to 1, normalised inside; "
        "`normalised`: already normalised (default: unit; safetensors holds weights only, which take "
        "normalised images)",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        check_output_folder(arguments.output, "--output")
    check_run(arguments)
    with imports_uncollected():
        from pipeline.inference.export import export_run

    exported = export_run(
        arguments.run,
        arguments.format,
        arguments.checkpoint,
        arguments.overrides,
        arguments.output,
        arguments.input,
        ema=arguments.ema,
    )
    print(exported.summary)
    if arguments.format == "hub":
        print(f"push it: {_push(exported.file.parent)}")
    print(exported.file)
    return 0


def _push(folder: Path) -> str:
    """Return the command that creates a repository of the user's, and uploads the folder."""
    from pipeline.inference.hub_folder import read_hub_config, repository_name

    program = Path(sys.executable).with_name("hf")
    name = "hf" if shutil.which("hf") or not program.exists() else str(program)
    _, config, _ = read_hub_config(folder)
    repository = repository_name(config["model"]["name"], config["data"]["dataset"])
    return f"{name} upload USER/{repository} {shlex.quote(str(folder))} ."
