"""Decodes all images of a data set, lists bad files, counts classes, draws sizes; exit code 1: faults."""

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_overrides, check_output_folder, count
from pipeline.config import FileData, load_config, path_of
from pipeline.errors import EXIT_INTERRUPTED, Stopped, UserError
from pipeline.process.cores import usable_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", help="folder of images, or folder or address of shards, as data.root")
    add_overrides(parser, "keys of the data section, such as data.train_list=FILE")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (default: ROOT/.quickres/check)"
    )
    parser.add_argument(
        "--threads",
        type=count,
        default=usable_cores(),
        metavar="N",
        help="threads that decode (default: one per core)",
    )


def run(arguments: argparse.Namespace) -> int:
    from pipeline.data.files.check import check_files, describe, write_report
    from pipeline.data.files.list_files import root_of

    if arguments.out is not None:
        check_output_folder(arguments.out, "--out")
    config = _data_of(arguments)
    out = arguments.out or root_of(config) / ".quickres" / "check"
    try:
        checked = check_files(config)
    except Stopped as stopped:
        print(*stopped.partial, sep="\n")
        return EXIT_INTERRUPTED
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


def _data_of(arguments: argparse.Namespace) -> FileData:
    """Return the section `data`: shards where the folder holds them, and no class folders; else a folder."""
    overrides = arguments.overrides
    if not any(item.startswith("data.dataset=") for item in overrides):
        overrides = [f"data.dataset={_kind_of(arguments.root)}", *overrides]
    data = load_config(overrides=[f"data.num_threads={arguments.threads}", *overrides]).data
    if not isinstance(data, FileData):
        raise UserError(f"data.dataset: {data.dataset} has no files to check; use folder or shards")
    # YAML must not read the root: a path may look like a number
    return data.model_copy(update={"root": arguments.root})


def _kind_of(root: str) -> str:
    from pipeline.data.files.folders import class_folders_in
    from pipeline.data.files.shards.patterns import first_shard
    from pipeline.data.files.shards.remote import is_address

    if is_address(root):
        return "shards"
    folder = path_of("data.root", root)
    if first_shard(folder) is None:
        return "folder"
    has_classes = (folder / "train").is_dir() and class_folders_in(folder / "train")
    return "folder" if has_classes else "shards"
