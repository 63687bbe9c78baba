"""Computes confusion matrices, the accuracy of each class, and the pairs most often confused."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.inference.predictions import Predictions
from pipeline.plotting import style

_MAX_TABLE = 20  # classes up to which the matrix is a table of numbers; with more it is a picture
_MAX_PAIRS = 8
_Z = 1.96  # standard normal quantile of a 95 % interval


@dataclass(frozen=True)
class Cell:
    """One cell of the table; `shade` in [0, 1] is the depth of its colour."""

    count: int
    shade: float
    right: bool
    tooltip: str


@dataclass(frozen=True)
class Confusion:
    """The matrix of one run: a table of few classes, or a picture of many.

    Attributes:
        pairs: the most frequent mistakes: true class, predicted class, count, fraction of the true class.
    """

    names: list[str]
    rows: list[list[Cell]]
    picture: str
    pairs: list[tuple[str, str, int, str]]


@dataclass(frozen=True)
class Share:
    """One class in one run: fractions, and `text` and `counts` to show.

    Attributes:
        low, high: the 95 % interval, from `wilson`.
    """

    accuracy: float
    low: float
    high: float
    text: str
    counts: str


@dataclass(frozen=True)
class ClassRow:
    """One class in every run; None if a run does not have the class."""

    name: str
    shares: list[Share | None]


def confusion_of(predictions: Predictions) -> Confusion:
    names = [style.one_line(name) for name in predictions.class_names.tolist()]
    matrix = predictions.confusion
    fractions = matrix / np.maximum(matrix.sum(axis=1), 1)[:, None]
    pairs = _pairs(names, matrix, fractions)
    if len(names) > _MAX_TABLE:
        return Confusion(names, [], _picture(fractions), pairs)
    rows = [
        [
            Cell(
                int(matrix[i, j]),
                round(math.sqrt(fractions[i, j]), 3),  # so that 1 % of mistakes is visible beside 99 %
                i == j,
                f"true {names[i]}, predicted {names[j]}: {matrix[i, j]}",
            )
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]
    return Confusion(names, rows, "", pairs)


def _pairs(names: list[str], matrix: np.ndarray, fractions: np.ndarray) -> list[tuple[str, str, int, str]]:
    wrong = matrix * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_PAIRS]
    return [
        (
            names[true],
            names[predicted],
            int(wrong[true, predicted]),
            style.percent(float(fractions[true, predicted])),
        )
        for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[true, predicted]
    ]


def _picture(fractions: np.ndarray) -> str:
    """Draw a transparent PNG for light and dark pages, one pixel a cell, blue if right and red if wrong.

    Returns:
        A data URL.
    """
    size = len(fractions)
    pixels = np.zeros((size, size, 4), np.uint8)
    right = np.eye(size, dtype=bool)
    pixels[right, :3], pixels[~right, :3] = (0x2A, 0x86, 0xC4), (0xE0, 0x6A, 0x1B)
    pixels[..., 3] = np.round(255 * np.sqrt(fractions))
    return data_url(Image.fromarray(pixels), "PNG", optimize=True)


def data_url(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def class_rows(runs: Sequence[Predictions | None]) -> tuple[list[ClassRow], int]:
    """Return all classes with their accuracy in each run, hardest first (by the mean), and their number."""
    names = list(dict.fromkeys(name for run in runs if run is not None for name in run.class_names.tolist()))
    columns = [_shares(run) if run is not None else {} for run in runs]
    rows = [ClassRow(style.one_line(name), [column.get(name) for column in columns]) for name in names]

    def difficulty(row: ClassRow) -> float:
        known = [share.accuracy for share in row.shares if share is not None]
        return sum(known) / len(known) if known else math.inf

    return sorted(rows, key=difficulty), len(names)


def _shares(run: Predictions) -> dict[str, Share]:
    matrix, shares = run.confusion, {}
    for i, name in enumerate(run.class_names.tolist()):
        right, total = int(matrix[i, i]), int(matrix[i].sum())
        if total:
            low, high = wilson(right, total)
            shares[name] = Share(
                right / total, low, high, f"{100 * right / total:.1f} %", f"{right:,} of {total:,}"
            )
    return shares


def wilson(right: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    share, z2 = right / total, _Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
