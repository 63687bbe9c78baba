"""Takes one line of a chart out of the records of a run, and writes its values as text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.run.records import EvalRecord, TrainRecord

Rates = tuple[np.ndarray, np.ndarray]  # epochs and learning rates, (N,) float64 each
Records = Sequence[TrainRecord] | Sequence[EvalRecord]
_LARGEST, _SMALLEST = 99_999.5, 1e-4  # outside of these a value is written as a power of ten
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
    """Write a value; one of 100,000 and more, or below 0.0001, as a power of ten.

    >>> number(2.34567), number(98765.4), number(392811479.0), number(1e-12)
    ('2.346', '98,765', '3.93×10⁸', '10⁻¹²')
    """
    return power_of_ten(value) if needs_power(value) else grouped(value)


def grouped(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def decimals(value: float) -> str:
    """Write a value with four decimals, where `number` needs no power of ten."""
    return power_of_ten(value) if needs_power(value) else f"{value:.4f}"


def needs_power(value: float) -> bool:
    return _LARGEST <= abs(value) < math.inf or 0 < abs(value) < _SMALLEST


def power_of_ten(value: float) -> str:
    """Write a value with up to three digits and a power of ten, such as 1.5×10⁸ or 10⁸."""
    if not value:
        return "0"
    factor, exponent = f"{value:.2e}".split("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if float(factor) == 1 else f"{float(factor):g}×{power}"


def power_of_two(value: float) -> str:
    exponent = math.log2(value)
    return "2" + str(round(exponent)).translate(_SUPERSCRIPTS) if exponent.is_integer() else number(value)
