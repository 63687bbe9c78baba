"""Prints the accuracy of a run's checkpoint on the test set."""

import argparse

from pipeline.atomic_io import read_json
from pipeline.commands.arguments import add_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)


def run(arguments: argparse.Namespace) -> int:
    from pipeline.inference.evaluate_run import evaluate_run
    from pipeline.run.console import OTHER_ACCURACIES

    result = evaluate_run(arguments.run, arguments.checkpoint, tuple(arguments.overrides))
    print(f"test accuracy {result.accuracy:.4%} ({result.correct}/{result.seen}), loss {result.loss:.4f}")
    figures = result.figures()
    for key, name in OTHER_ACCURACIES.items():
        if key in figures:
            print(f"{name:13} {figures[key]:.4%}")
    recorded = arguments.run / "result.json"
    if arguments.checkpoint == "last" and recorded.is_file():
        print(f"recorded      {read_json(recorded)['test_accuracy']:.4%}")
    return 0
