"""Prints the accuracy of a run's checkpoint, or of shipped weights, on the test set."""

import argparse
from pathlib import Path

from pipeline.commands.arguments import add_run, check_output_file, check_run
from pipeline.errors import EXIT_INTERRUPTED, Stopped, UserError
from pipeline.pretrained.registry import find_shipped
from pipeline.process.fast_import import imports_uncollected
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult, loss_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="also write file names, predicted classes and all probabilities: a .csv or .parquet file",
    )


def run(arguments: argparse.Namespace) -> int:
    table = arguments.predictions
    if table is not None:
        from pipeline.inference.prediction_table import check_table_name

        check_table_name(table)
        check_output_file(table, "--predictions")
    check_run(arguments)
    with imports_uncollected():
        from pipeline.inference.evaluate_run import predict_test_set

    try:
        evaluated = predict_test_set(arguments.run, arguments.checkpoint, tuple(arguments.overrides))
    except Stopped as stopped:
        print(stopped.partial)
        return EXIT_INTERRUPTED
    result = evaluated.result
    counts, loss = f"({result.correct}/{result.seen})", loss_text(result.loss)
    print(f"test accuracy {result.accuracy:.4%} {counts}, loss {loss}")
    others = result.figures().other_accuracies()
    width = max([13, *map(len, others)])
    for label, accuracy in others.items():
        print(f"{label:{width}} {accuracy:.4%}")
    print(f"{'calibration':{width}} {evaluated.calibration.summary}")
    if arguments.checkpoint == "last" and (recorded := _recorded(arguments.run)):
        print(recorded)
    if table is not None:
        print(evaluated.table.save(table))
    return 0


def _recorded(run: Path) -> str:
    """Return the line of the recorded accuracy; empty if there is none. A damaged result.json is no reason to
    fail after the work."""
    shipped = find_shipped(run)
    if shipped is not None:
        images = f"the {shipped.num_test_images:,} test images of {shipped.data}"
        return f"recorded      {shipped.accuracy:.4%} on {images}"
    file = RunFolder(run).result
    if not file.is_file():
        return ""
    try:
        return f"recorded      {RunResult.read(file).test_accuracy:.4%}"
    except UserError as error:
        return f"recorded      unknown: {error}"
