"""Takes one line of a chart out of the records of a run, and writes its values as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.run.records import EvalRecord, TrainRecord

Rates = tuple[np.ndarray, np.ndarray]  # epochs and learning rates, (N,) float64 each
Records = Sequence[TrainRecord] | Sequence[EvalRecord]
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: stands at the end of the line.
        color: a class of the style sheet, `c1` to `c6`.
        epochs, values: (N,) float64, finite, in the order of the run.
        last: the last value measured, which may not be finite.
        starred: mark the largest value with a star.
    """

    name: str
    color: str
    epochs: np.ndarray
    values: np.ndarray
    last: float
    starred: bool = False

    def where(self, selected: np.ndarray | list[int]) -> "Series":
        """Return the series with the selected points only, by a mask or by indices."""
        return replace(self, epochs=self.epochs[selected], values=self.values[selected])


def series_of(name: str, color: str, records: Records, key: str) -> Series:
    """Collect the values of one key over the epochs; values that are missing or not finite are left out."""
    values = [(record, getattr(record, key, None)) for record in records]
    # the loss of an evaluation is None if it was NaN; any other None means that there was nothing to measure
    measured = [(r, v) for r, v in values if v is not None or (key == "loss" and isinstance(r, EvalRecord))]
    points = [(finite(record.epoch), finite(value)) for record, value in measured]
    pairs = np.array([p for p in points if None not in p], dtype=np.float64).reshape(-1, 2)
    last = points[-1][1] if points else None
    return Series(name, color, pairs[:, 0], pairs[:, 1], math.nan if last is None else last)


def letter(position: int) -> str:
    """Return the name of a run among several: A, B, …"""
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def finite(value: object) -> float | None:
    """Return the value if it is a finite number, otherwise None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def power_of_two(value: float) -> str:
    exponent = math.log2(value)
    return "2" + str(round(exponent)).translate(_SUPERSCRIPTS) if exponent.is_integer() else number(value)
