"""`python -m pipeline COMMAND`: train, look at, and explain runs."""

import argparse
import logging
import sys
from collections.abc import Sequence

from pipeline import train
from pipeline.commands import (
    check,
    check_data,
    config_reference,
    evaluate,
    explain,
    export,
    lr_find,
    predict,
    report,
    summary,
)
from pipeline.commands.exit_code import exit_code_of
from pipeline.process.cache_dirs import use_cache_folder

COMMANDS = {
    "train": (train, "train one run on this process alone (several: accelerate launch -m pipeline.train)"),
    "check": (check, "validate a recipe and its overrides"),
    "summary": (
        summary,
        "layers of a recipe's network with shapes, parameters, memory and FLOPs; its graph as a picture",
    ),
    "lr-find": (lr_find, "learning-rate range test: a curve as a picture, and a suggested maximum"),
    "config-reference": (config_reference, "print every key with type, default and meaning"),
    "check-data": (
        check_data,
        "decode every image of a folder; list bad files, count classes, draw sizes; exit code 1 if any is bad",
    ),
    "evaluate": (evaluate, "accuracy on the test set of a run's checkpoint"),
    "explain": (
        explain,
        "Grad-CAM maps of misclassified test images, of chosen ones or of files, as one picture",
    ),
    "predict": (predict, "the most probable classes of images"),
    "export": (export, "a run's network as a file for other programs, checked to give the same logits"),
    "report": (report, "one HTML page of a run, or of several side by side, from their folders alone"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary_line) in COMMANDS.items():
        command = commands.add_parser(name, help=summary_line, description=summary_line)
        command.set_defaults(run_command=module.run)
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for bad input."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    use_cache_folder()
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no more `key=value` after an option
    if not hasattr(arguments, "overrides") or any("=" not in item or item.startswith("-") for item in rest):
        parser.parse_args(argv)  # exits, and prints the error
    else:
        arguments.overrides = [*arguments.overrides, *rest]
    return exit_code_of(lambda: arguments.run_command(arguments))


if __name__ == "__main__":
    sys.exit(main())
