"""Decodes all images of a folder, lists bad files, counts classes, draws sizes; exit code 1: faults."""

import argparse
import os
from pathlib import Path

from pipeline.commands.arguments import add_overrides, check_output_folder, count
from pipeline.config import FolderData, load_config, path_of
from pipeline.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="folder of images, as data.root")
    add_overrides(parser, "keys of the data section, such as data.train_list=FILE")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (default: ROOT/.quickres/check)"
    )
    parser.add_argument(
        "--threads",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads that decode (default: one per core)",
    )


def run(arguments: argparse.Namespace) -> int:
    from pipeline.data.files.check import check_folder, describe, write_report

    out = arguments.out or path_of("data.root", arguments.root) / ".quickres" / "check"
    if arguments.out is not None:
        check_output_folder(out, "--out")
    config = load_config(
        overrides=["data.dataset=folder", f"data.num_threads={arguments.threads}", *arguments.overrides]
    )
    assert isinstance(config.data, FolderData)
    # YAML must not read the root: a path may look like a number
    checked = check_folder(config.data.model_copy(update={"root": arguments.root}))
    from pipeline.plotting import style
    from pipeline.report.image_sizes import draw_sizes

    for line in describe(checked):
        print(line)
    for path, reason in checked.bad[:10]:
        print(f"  {style.one_line(path)}: {reason}")
    for problem in checked.problems:
        print(f"error: {problem}")
    for warning in checked.warnings:
        print(f"warning: {warning}")
    try:
        written = write_report(checked, out)
        if len(checked.good_sizes):
            written.append(draw_sizes(checked, out / "image_sizes.png"))
    except OSError as error:
        raise UserError(
            f"--out: cannot write {error.filename or out} ({error.strerror}); choose another folder"
        ) from None
    print("written:", *written)
    return 1 if checked.bad or checked.problems else 0
