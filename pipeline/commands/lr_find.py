"""Runs a learning-rate range test: a curve as a picture, and a suggested maximum."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import add_recipe, whole_number
from pipeline.config import load_config

if TYPE_CHECKING:
    from pipeline.training.lr_finder import RangeTest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--min", type=float, default=1e-4, help="learning rate of the first step (default: 1e-4)"
    )
    parser.add_argument(
        "--max", type=float, default=10.0, help="learning rate of the last step (default: 10)"
    )
    parser.add_argument(
        "--steps", type=whole_number(10, 100_000), default=100, metavar="N", help="steps (default: 100)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="PNG", help="the picture (default: lr-find-RECIPE.png in log.dir)"
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    from pipeline.report.lr_curve import draw
    from pipeline.training import lr_finder

    recipe = Path(arguments.config).stem
    picture = arguments.output or Path(config.log.dir) / f"lr-find-{recipe}.png"
    found = lr_finder.lr_find(config, arguments.min, arguments.max, arguments.steps)
    parts = (config.optimizer.name, f"batch {config.data.batch_size}", config.precision.mode)
    about = f"{config.model.name} on {config.data.dataset}, {', '.join(parts)}"
    draw(found, picture, f"Learning-rate range test: {recipe}", about)
    print(
        f"{len(found.rates)} steps, learning rate {found.rates[0]:.2g} to {found.rates[-1]:.2g}"
        + (", where the loss diverged" if found.diverged else "")
        + f"; loss {found.smoothed[0]:.3f}, smallest {found.smoothed.min():.3f} at {found.rates[found.smoothed.argmin()]:.2g}"
    )
    print(f"curve: {picture}")
    _print_suggestion(found, arguments)
    return 0


def _print_suggestion(found: "RangeTest", arguments: argparse.Namespace) -> None:
    from pipeline.training.lr_finder import RULE

    if found.suggested is None:
        why = (
            "still falls at the largest rate; try a larger --max"
            if found.fell
            else "never fell; try a smaller --min, or more --steps"
        )
        print(f"no suggestion: the loss {why}")
        return
    print(f"suggested maximum: {found.suggested:.2g}, {RULE}; it falls fastest at {found.steepest:.2g}")
    same = [word for word in arguments.overrides if not word.startswith("optimizer.lr=")]
    print(
        "use it: "
        + shlex.join(["./launch.sh", arguments.config, *same, f"optimizer.lr={found.suggested:.2g}"])
    )
