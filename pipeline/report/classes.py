"""Which class is taken for which: confusion matrix, accuracy of each class, and the pairs most often confused."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.inference.predictions import Predictions
from pipeline.plotting import style

MOST_CELLS = 20  # classes up to which the matrix is a table of numbers; beyond, a picture
_MOST_PAIRS = 8
_Z = 1.96  # standard normal quantile of a 95 % interval


@dataclass(frozen=True)
class Cell:
    """`shade` in [0, 1] is how strong the cell is coloured."""

    count: int
    shade: float
    right: bool
    words: str


@dataclass(frozen=True)
class Confusion:
    """The matrix of one run: a table of few classes, or a picture of many; and its most frequent mistakes."""

    names: list[str]
    rows: list[list[Cell]]
    picture: str
    pairs: list[tuple[str, str, int, str]]


@dataclass(frozen=True)
class Share:
    """One class in one run. `low` and `high` are the Wilson (1927) 95 % interval; all are fractions, `text` and `counts` for reading."""

    accuracy: float
    low: float
    high: float
    text: str
    counts: str


@dataclass(frozen=True)
class ClassRow:
    """One class in every run; None where a run does not know it."""

    name: str
    shares: list[Share | None]


def confusion_of(predictions: Predictions) -> Confusion:
    names = [style.one_line(name) for name in predictions.class_names.tolist()]
    matrix = predictions.confusion
    sizes = np.maximum(matrix.sum(axis=1), 1)
    shares = matrix / sizes[:, None]
    wrong = matrix * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_PAIRS]
    pairs = []
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column]:
            pairs.append(
                (
                    names[row],
                    names[column],
                    int(wrong[row, column]),
                    style.percent(float(shares[row, column])),
                )
            )
    if len(names) > MOST_CELLS:
        return Confusion(names, [], _picture(shares), pairs)
    rows = [
        [
            Cell(
                int(matrix[i, j]),
                round(_shade(float(shares[i, j])), 3),
                i == j,
                f"true {names[i]}, predicted {names[j]}: {matrix[i, j]}",
            )
            for j in range(len(names))
        ]
        for i in range(len(names))
    ]
    return Confusion(names, rows, "", pairs)


def _shade(share: float) -> float:
    """The square root: a mistake of 1 % is to be seen beside 99 % that are right."""
    return math.sqrt(share)


def _picture(shares: np.ndarray) -> str:
    """A transparent PNG, one pixel a cell, blue where right and red where wrong, as a data URL; it suits a light and a dark page."""
    size = len(shares)
    pixels = np.zeros((size, size, 4), np.uint8)
    right = np.eye(size, dtype=bool)
    pixels[right, :3], pixels[~right, :3] = (0x2A, 0x86, 0xC4), (0xE0, 0x6A, 0x1B)
    pixels[..., 3] = np.round(255 * np.sqrt(shares))
    return data_url(Image.fromarray(pixels), "PNG", optimize=True)


def data_url(image: Image.Image, kind: str, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def class_rows(runs: Sequence[Predictions | None]) -> tuple[list[ClassRow], int]:
    """Every class with its accuracy in each run, hardest first (mean over the runs), and the number of classes."""
    names = list(dict.fromkeys(name for run in runs if run is not None for name in run.class_names.tolist()))
    columns = [_shares(run) if run is not None else {} for run in runs]
    rows = [ClassRow(style.one_line(name), [column.get(name) for column in columns]) for name in names]

    def difficulty(row: ClassRow) -> float:
        known = [share.accuracy for share in row.shares if share is not None]
        return sum(known) / len(known) if known else math.inf

    return sorted(rows, key=difficulty), len(names)


def _shares(run: Predictions) -> dict[str, Share]:
    matrix, found = run.confusion, {}
    for i, name in enumerate(run.class_names.tolist()):
        right, total = int(matrix[i, i]), int(matrix[i].sum())
        if total:
            low, high = wilson(right, total)
            found[name] = Share(
                right / total, low, high, f"{100 * right / total:.1f} %", f"{right:,} of {total:,}"
            )
    return found


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    >>> [round(bound, 3) for bound in wilson(9, 10)]
    [0.596, 0.982]
    """
    share, z2 = right / total, _Z**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)
