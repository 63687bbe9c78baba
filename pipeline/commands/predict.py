"""Prints the most probable classes of images."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.commands.arguments import add_ema, add_run, check_run, count
from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Stopped, UserError
from pipeline.process.fast_import import imports_uncollected

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.inference.predict_files import Prediction
    from pipeline.inference.prediction_table import PredictionTable
    from pipeline.inference.trained_model import Trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser, overrides=False)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="image files of any size, or folders of such files",
    )
    parser.add_argument(
        "--top",
        type=count,
        default=5,
        metavar="K",
        help="number of classes to print for each image (default: 5)",
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print JSON instead of a table")
    forms.add_argument(
        "--csv",
        action="store_true",
        help="print CSV with all probabilities instead of a table; `> FILE` keeps it",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), help="device to predict on (default: runtime.device)"
    )
    add_ema(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the predictions as a table, as CSV or as JSON, and to stderr the files that cannot be read.

    Returns:
        The exit code: 0, or 2 if a file cannot be read. The other files are predicted nevertheless. After
        Ctrl-C it is 130, and the predictions so far are printed.
    """
    from rich.console import Console

    from pipeline.data.files.paths import printable

    check_run(arguments)
    _check_files(arguments.files)
    with imports_uncollected():
        from pipeline.inference.predict_files import predict_files
        from pipeline.inference.trained_model import load_trained

    overrides = [] if arguments.device is None else [f"runtime.device={arguments.device}"]
    trained = load_trained(arguments.run, arguments.checkpoint, overrides, ema=arguments.ema)
    top = trained.inputs.num_classes if arguments.csv else arguments.top
    code = 0
    try:
        predictions, bad = predict_files(trained, arguments.files, top)
    except Stopped as stopped:
        (predictions, bad), code = stopped.partial, EXIT_INTERRUPTED
    if arguments.csv:
        _tabulate(trained, predictions).write_csv(sys.stdout)
    elif arguments.json:
        print(json.dumps(_describe(trained, predictions, bad), indent=1))
    elif predictions:
        console = Console()
        if not console.is_terminal:  # a pipe has no width: do not cut the table
            console = Console(width=100_000, highlight=False)
        console.print(_table(trained.inputs.class_names, predictions))
    for file, reason in bad:
        print(f"error: {printable(file)}: {reason}", file=sys.stderr)
    return code or (EXIT_USER_ERROR if bad else 0)


def _check_files(files: Sequence[Path]) -> None:
    """Refuse a command of which no file exists, before torch is imported; otherwise the others are predicted.

    Raises:
        UserError: names the files.
    """
    from pipeline.data.files.paths import printable

    if not any(os.path.lexists(file) for file in files):
        names = ", ".join(map(printable, files))
        raise UserError(f"{names}: no such file; give image files, or folders of them")


def _tabulate(trained: "Trained", predictions: "list[Prediction]") -> "PredictionTable":
    """Return the probabilities in the order of the classes; logarithms of probabilities are logits too."""
    import numpy as np

    from pipeline.inference.prediction_table import PredictionTable

    names = trained.inputs.class_names
    logits = np.zeros((len(predictions), len(names)), np.float64)
    for row, item in zip(logits, predictions, strict=True):
        with np.errstate(divide="ignore"):
            row[list(item.classes)] = np.log(item.probabilities)
    return PredictionTable([str(item.file) for item in predictions], names, logits)


def _describe(
    trained: "Trained", predictions: "list[Prediction]", bad: list[tuple[Path, str]]
) -> dict[str, Any]:
    from pipeline.data.files.paths import printable

    names = trained.inputs.class_names

    def classes(prediction: "Prediction") -> list[dict[str, Any]]:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        return [{"class": names[label], "index": label, "probability": value} for label, value in pairs]

    return {
        "run": trained.name if trained.run is None else str(trained.run.path),
        "checkpoint": None if trained.checkpoint is None else trained.checkpoint.name,
        "ema": trained.ema,
        "predictions": [{"file": printable(item.file), "top": classes(item)} for item in predictions],
        "errors": [{"file": printable(file), "reason": reason} for file, reason in bad],
    }


def _table(class_names: Sequence[str], predictions: "list[Prediction]") -> "Table":
    from rich.table import Table
    from rich.text import Text

    from pipeline.data.files.paths import printable
    from pipeline.plotting import style

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    for place in range(len(predictions[0].classes)):
        table.add_column(
            "class" if place == 0 else str(place + 1), overflow="fold", style="bold" if place == 0 else None
        )
        table.add_column("", justify="right", no_wrap=True)
    for item in predictions:
        cells = [printable(item.file)]
        for label, probability in zip(item.classes, item.probabilities, strict=True):
            cells += [style.one_line(class_names[label]), style.percent(probability)]
        table.add_row(*map(Text, cells))  # Text: brackets in a name are not markup
    return table
