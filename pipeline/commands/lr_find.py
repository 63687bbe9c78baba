"""Runs a learning-rate range test: draws the curve and suggests a maximum."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.arguments import add_recipe, check_output_file, print_warnings, whole_number
from pipeline.config import load_config, name_of, path_of
from pipeline.errors import EXIT_INTERRUPTED, Stopped
from pipeline.process.command_line import pipeline_command
from pipeline.process.fast_import import imports_uncollected
from pipeline.run.records import loss_text

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
    print_warnings(config)
    recipe = name_of(arguments.config)
    picture = arguments.output or path_of("log.dir", config.log.dir) / f"lr-find-{recipe}.png"
    check_output_file(picture, "--output" if arguments.output else "log.dir")
    with imports_uncollected():
        from pipeline.report.lr_curve import draw
        from pipeline.training import lr_finder

    code = 0
    try:
        result = lr_finder.lr_find(config, arguments.min, arguments.max, arguments.steps)
    except Stopped as stopped:
        result, code = stopped.partial, EXIT_INTERRUPTED
        if not len(result.losses):
            return code
    parts = (config.optimizer.name, f"batch {config.data.batch_size}", config.precision.mode)
    subtitle = f"{config.model.name} on {config.data.dataset}, {', '.join(parts)}"
    draw(result, picture, f"Learning-rate range test: {recipe}", subtitle)
    print(_describe(result))
    print(f"curve: {picture}")
    _print_suggestion(result, arguments)
    return code


def _describe(result: "RangeTest") -> str:
    rates, losses = result.rates, result.smoothed
    diverged = ", where the loss diverged" if result.diverged else ""
    first, smallest = loss_text(losses[0], 3), loss_text(losses.min(), 3)
    return (
        f"{len(rates)} steps, learning rate {rates[0]:.2g} to {rates[-1]:.2g}{diverged}; "
        f"loss {first}, smallest {smallest} at {rates[losses.argmin()]:.2g}"
    )


def _print_suggestion(result: "RangeTest", arguments: argparse.Namespace) -> None:
    from pipeline.training.lr_finder import RULE

    if result.stopped:
        print(f"no suggestion: stopped after {len(result.rates)} of {arguments.steps} steps")
        return
    if result.suggested is None:
        falls = "still falls at the largest learning rate; try a larger --max"
        never_fell = "never fell; try a smaller --min, or more --steps"
        print(f"no suggestion: the loss {falls if result.fell else never_fell}")
        return
    print(f"suggested maximum: {result.suggested:.2g}, {RULE}; it falls fastest at {result.steepest:.2g}")
    others = [word for word in arguments.overrides if not word.startswith("optimizer.lr=")]
    command = pipeline_command("train", arguments.config, *others, f"optimizer.lr={result.suggested:.2g}")
    print(f"use it: {command}")
