"""The most probable classes of image files."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scipy.special import log_softmax

from pipeline.data.listing import SUFFIXES, printable
from pipeline.errors import EXIT_USER_ERROR
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.plotting import style

_CHUNK = 1024  # images in memory at once


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        file: the image.
        classes: indices of the most probable classes, the most probable first.
        probabilities: theirs, from the softmax over all classes.
    """

    file: Path
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


def predict_files(trained: Trained, files: Sequence[str | Path], top: int = 5) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Predict the classes of image files of any size, resized and cropped as the run's evaluation images are, in float32.

    Args:
        trained: the network.
        files: files, and folders in which all JPEG and PNG files are taken, hidden ones excepted.
        top: how many classes of each; at most all of them.

    Returns:
        The predictions, and the files that cannot be read with the reason; both in the order of the files.
    """
    predictions: list[Prediction] = []
    bad: list[tuple[Path, str]] = []
    for chunk in _chunks(_expand(files, bad)):
        pixels, unread = trained.inputs.read_images(chunk, trained.config.data.num_threads)
        bad += unread
        unreadable = {path for path, _ in unread}
        kept = [row for row, path in enumerate(chunk) if path not in unreadable]
        if kept:
            predictions += _rank([chunk[row] for row in kept], trained.logits(pixels[kept]), top)
    return predictions, bad


def _rank(files: list[Path], logits: np.ndarray, top: int) -> list[Prediction]:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    found = np.exp(np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), order, axis=1))
    return [Prediction(file, tuple(row), tuple(share)) for file, row, share in zip(files, order.tolist(), found.tolist(), strict=True)]


def _expand(files: Sequence[str | Path], bad: list[tuple[Path, str]]) -> Iterator[Path]:
    """Each file once; for a folder its images, in the order of their paths."""
    for given in dict.fromkeys(map(Path, files)):
        if not given.is_dir():
            yield given
            continue
        found = 0
        for folder, below, names in os.walk(given, onerror=lambda error: bad.append((Path(error.filename), error.strerror or str(error)))):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    found += 1
                    yield Path(folder, name)
        if not found:
            bad.append((given, "no .jpg, .jpeg or .png file in this folder"))


def _chunks(files: Iterator[Path]) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def predict_run(
    path: str | Path,
    files: Sequence[Path],
    which: str = "last",
    top: int = 5,
    device: str | None = None,
    *,
    as_json: bool = False,
    ema: bool = False,
) -> int:
    """Print the predictions of a run's checkpoint, as a table or as JSON, and to stderr the files that cannot be read.

    Args:
        path, which, ema: as for `load_trained`.
        files, top: as for `predict_files`.
        device: `auto`, `cpu` or `gpu`; default: the run's.
        as_json: print one JSON object: `run`, `checkpoint`, `ema`, `predictions` (file, and class, index and probability of each),
            `errors`.

    Returns:
        The exit code: 0, or 2 where a file could not be read; the others are predicted all the same.
    """
    trained = load_trained(path, which, [] if device is None else [f"runtime.device={device}"], ema=ema)
    predictions, bad = predict_files(trained, files, top)
    if as_json:
        print(json.dumps(_describe(trained, predictions, bad), indent=1))
    elif predictions:
        console = Console()
        if not console.is_terminal:  # a pipe has no width to cut the table to
            console = Console(width=100_000, highlight=False)
        console.print(_table(trained.inputs.class_names, predictions))
    for file, reason in bad:
        print(f"error: {printable(file)}: {reason}", file=sys.stderr)
    return EXIT_USER_ERROR if bad else 0


def _describe(trained: Trained, predictions: list[Prediction], bad: list[tuple[Path, str]]) -> dict[str, Any]:
    assert trained.run is not None and trained.checkpoint is not None
    names = trained.inputs.class_names

    def classes(prediction: Prediction) -> list[dict[str, Any]]:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        return [{"class": names[label], "index": label, "probability": share} for label, share in pairs]

    return {
        "run": str(trained.run.path),
        "checkpoint": trained.checkpoint.name,
        "ema": trained.ema,
        "predictions": [{"file": printable(item.file), "top": classes(item)} for item in predictions],
        "errors": [{"file": printable(file), "reason": reason} for file, reason in bad],
    }


def _table(class_names: Sequence[str], predictions: list[Prediction]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    for place in range(len(predictions[0].classes)):
        table.add_column("class" if place == 0 else str(place + 1), overflow="fold", style="bold" if place == 0 else None)
        table.add_column("", justify="right", no_wrap=True)
    for item in predictions:
        cells = [printable(item.file)]
        for label, share in zip(item.classes, item.probabilities, strict=True):
            cells += [style.one_line(class_names[label]), style.percent(share)]
        table.add_row(*map(Text, cells))  # brackets in a name are no markup
    return table
