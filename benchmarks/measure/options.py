"""Defines the command line that all benchmarks share."""

import argparse
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pipeline.config import without_other_kinds
from pipeline.errors import UserError
from pipeline.process.fast_import import imports_uncollected

# overrides of --quick: seconds on two CPU cores
QUICK = (
    "data.dataset=synthetic",
    "data.image_size=16",
    "data.num_samples=64",
    "data.batch_size=8",
    "data.num_threads=1",
    "augment.crop_padding=2",
    "augment.cutout=4",
    "model.name=resnet20",
    "model.shortcut=A",
    "compile.backend=aot_eager",
)
_WINDOWS, _GPU_STEPS, _CPU_STEPS = 5, 100, 10
_QUICK_WINDOWS, _QUICK_STEPS = 1, 5
# numbers of any benchmark, which are checked before torch is imported
_COUNTS = ("windows", "steps", "starts", "pairs", "rounds", "jobs", "runs", "peer_runs", "blocks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all benchmarks share."""
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="[CONFIG] key=value",
        help="recipe (default: one for this machine) and keys over it",
    )
    parser.add_argument("--record", action="store_true", help="append the result to benchmarks/results/")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 5 steps of a tiny model")
    parser.add_argument("--windows", type=int, help=f"timed windows (default: {_WINDOWS})")
    parser.add_argument(
        "--steps",
        type=int,
        help=f"steps of a window (default: {_GPU_STEPS} on a GPU, {_CPU_STEPS} on the CPU)",
    )


def split_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the recipe (if none is named, the default of this machine) and the overrides."""
    if arguments and "=" not in arguments[0]:
        return arguments[0], list(arguments[1:])
    wants_cpu = "runtime.device=cpu" in arguments or not _has_gpu()
    return "configs/quickstart.yaml" if wants_cpu else "configs/cifar10_resnet18.yaml", list(arguments)


def _has_gpu() -> bool:
    with imports_uncollected():
        import torch  # takes seconds, and is not needed to refuse a wrong key of a named recipe

    return torch.cuda.is_available()


def merge(*groups: Sequence[str]) -> list[str]:
    """Return the overrides of all groups: of the same key the last one, no key of another kind than the last.

    >>> merge(["seed=1", "duration=1ep"], ["seed=2"])
    ['seed=2', 'duration=1ep']
    """
    merged: dict[str, str] = {}
    for group in groups:
        fitting = without_other_kinds([*merged.values()], group)
        merged = {item.partition("=")[0]: item for item in [*fitting, *group]}
    return list(merged.values())


def listed(kind: Callable[[str], Any] = str, choices: Collection[str] = ()) -> Callable[[str], list[Any]]:
    """Return the type of an option with several values, separated by commas: `--batch-sizes 512,1024`."""

    def parse(text: str) -> list[Any]:
        values = []
        for word in text.split(","):
            if choices and word not in choices:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(choices)}")
            try:
                values.append(kind(word))
            except ValueError:
                raise argparse.ArgumentTypeError(f"{word!r} is no whole number; write them as 1,2") from None
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text} names one of them twice")
        return values

    return parse


def whole_number(least: int) -> Callable[[str], int]:
    """Return the type of an option with a whole number that is not below LEAST."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} or more, got {text}")
        return int(text)

    return parse


def num_windows(options: argparse.Namespace) -> int:
    """Return the number of timed windows of each variant."""
    return options.windows or (_QUICK_WINDOWS if options.quick else _WINDOWS)


def num_steps(options: argparse.Namespace, on_gpu: bool) -> int:
    """Return the number of steps of a window."""
    return options.steps or (_QUICK_STEPS if options.quick else _GPU_STEPS if on_gpu else _CPU_STEPS)


def check_at_least(least: int, options: argparse.Namespace, *names: str) -> None:
    """Check the options of these names that are given.

    Raises:
        UserError: one is smaller than `least`.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(
                f"--{name.replace('_', '-')}: expected a whole number, {least} or more, got {value}"
            )


def read_arguments(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the recipe and the overrides that the options ask for.

    Raises:
        UserError: options contradict each other.
    """
    if options.record and options.quick:
        raise UserError("--record: a smoke test is no measurement; leave out --quick")
    check_at_least(1, options, *(name for name in _COUNTS if hasattr(options, name)))
    recipe, overrides = split_arguments(options.arguments)
    if options.quick:
        # half precision is slow on CPUs
        on_cpu = [] if _has_gpu() else ["precision.mode=fp32"]
        overrides = merge(QUICK, on_cpu, overrides)
    return recipe, overrides
