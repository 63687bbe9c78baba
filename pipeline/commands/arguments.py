"""Declares the arguments that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add CONFIG and its overrides."""
    parser.add_argument("config", help="recipe, such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="keys that replace those of the recipe, such as optimizer.lr=0.1",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what a training takes."""
    add_recipe(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and exit: no GPU taken, nothing downloaded or written",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="write a profiler trace of some steps, and a table of kernels by share",
    )


def add_run(parser: argparse.ArgumentParser, *, overrides: bool = True) -> None:
    """Add the folder of a finished run, and which of its checkpoints to take."""
    parser.add_argument("run", type=Path, help="run folder, such as runs/latest")
    if overrides:
        parser.add_argument(
            "overrides",
            nargs="*",
            default=[],
            metavar="key=value",
            help="keys that replace those of the run's config, such as data.root=DIR",
        )
    parser.add_argument(
        "--checkpoint", default="last", metavar="last|best|STEP", help="which checkpoint (default: last)"
    )


def add_ema(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the averaged weights."""
    parser.add_argument("--ema", action="store_true", help="take the moving average of the weights")


def whole_number(lowest: int, highest: int = 2**20) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range; `choices=range(…)` would list all of them in its message."""

    def read(text: str) -> int:
        if not (text.isdecimal() and len(text) < 10 and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {lowest:,} to {highest:,}")
        return int(text)

    return read


count = whole_number(1)


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 3,17") from None
