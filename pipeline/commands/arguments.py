"""Declares the arguments that several commands share."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.inference.hub_names import is_hub_folder
from pipeline.pretrained.registry import find_shipped, list_names
from pipeline.run.folder import find_run


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add `key=value` arguments with this help text."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help=text)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and its overrides."""
    parser.add_argument("config", help="recipe, such as configs/quickstart.yaml")
    add_overrides(parser, "keys that replace those of the recipe, such as optimizer.lr=0.1")


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a training."""
    add_recipe(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and exit: uses no GPU, downloads and writes nothing",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="write a profiler trace of some steps, and a table of kernels with their fractions of the time",
    )


def add_run(parser: argparse.ArgumentParser, *, overrides: bool = True) -> None:
    """Add the folder of a finished run, or the name of shipped weights, and the choice of a checkpoint."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="run folder, such as runs/latest, or the name of weights in pipeline/pretrained/registry.json",
    )
    if overrides:
        add_overrides(parser, "keys that replace those of the run's config, such as data.root=DIR")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="last|best|STEP",
        help="checkpoint to use: a step, such as 82 or step-82, or the best one (default: last)",
    )


def check_run(arguments: argparse.Namespace) -> None:
    """Check RUN, its overrides and `--checkpoint` before torch is imported, which takes seconds.

    Raises:
        UserError: there is no such run or checkpoint, or a key is wrong.
    """
    from pipeline.run.named_checkpoint import named_checkpoint

    if find_shipped(arguments.run) is not None or is_hub_folder(arguments.run):
        return  # their keys are checked when they are loaded
    run = find_run(arguments.run, list_names)
    run.read_config(getattr(arguments, "overrides", ()))
    if arguments.checkpoint not in ("last", "best"):
        named_checkpoint(run, arguments.checkpoint, "--checkpoint")


def add_ema(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the averaged weights."""
    parser.add_argument("--ema", action="store_true", help="use the moving average of the weights")


def whole_number(lowest: int, highest: int = 2**20) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range; for `choices=range(…)` argparse would list them all."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < 10 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(
                f"{text!r}: expected a whole number from {lowest:,} to {highest:,}"
            )
        return int(text)

    return read


count = whole_number(1)


def numbers(text: str) -> list[int]:
    """Read whole numbers separated by commas."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected whole numbers, such as 3,17") from None


def check_output_file(path: Path, option: str) -> None:
    """Check, before the work that takes time, that a file can be written.

    Raises:
        UserError: the path is a folder or a device, or its folder cannot be written; names the option.
    """
    try:
        if path.is_dir():
            raise UserError(f"{option}: {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():  # it would be replaced by a file
            raise UserError(f"{option}: {path} is not a plain file; name a file in a folder")
    except OSError as error:  # such as a name that is too long
        raise _cannot_write(path, option, error) from None
    check_output_folder(path.parent, option)


def check_output_folder(path: Path, option: str) -> None:
    """Check, before the work that takes time, that a folder can be made and written.

    Raises:
        UserError: it cannot; names the option.
    """
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
    except OSError as error:
        raise _cannot_write(path, option, error) from None


def _cannot_write(path: Path, option: str, error: OSError) -> UserError:
    return UserError(
        f"{option}: cannot write {error.filename or path} ({error.strerror}); choose another place"
    )


def print_warnings(config: Config) -> None:
    """Print the warnings of a config, a line each, to stderr."""
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
