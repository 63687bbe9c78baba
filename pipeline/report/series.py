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

    >>> number(2.34567), number(98765.4), number(392811479.0), number(1e-12), number(9.999e-5)
    ('2.346', '98,765', '3.93×10⁸', '10⁻¹²', '0.0001')
    """
    if needs_power(value):
        return power_of_ten(value)
    return grouped(math.copysign(_SMALLEST, value) if 0 < abs(value) < _SMALLEST else value)


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Write the ticks of a linear axis alike, with as many digits as tell them apart.

    >>> tick_labels([2e8, 2.001e8]), tick_labels([1.0, 1.00002]), tick_labels([0.0, 5e4, 1e5])
    (['2×10⁸', '2.001×10⁸'], ['1', '1.00002'], ['0', '5×10⁴', '10⁵'])
    """
    as_power = any(map(needs_power, ticks))
    labels = [power_of_ten(tick) if as_power else number(tick) for tick in ticks]
    for digits in range(4, 18):
        if len(set(labels)) == len(labels):
            break
        labels = [power_of_ten(tick, digits) if as_power else f"{tick:,.{digits}g}" for tick in ticks]
    return labels


def grouped(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def decimals(value: float) -> str:
    """Write a value with four decimals, where `number` needs no power of ten."""
    return power_of_ten(value) if needs_power(value) else f"{value:.4f}"


def needs_power(value: float) -> bool:
    rounded = float(f"{value:.2e}")  # as `power_of_ten` writes it: 0.00009999 is 0.0001
    return _LARGEST <= abs(value) < math.inf or 0 < abs(rounded) < _SMALLEST


def power_of_ten(value: float, digits: int = 3) -> str:
    """Write a value with up to three digits, or more, and a power of ten, such as 1.5×10⁸ or 10⁸."""
    if not value:
        return "0"
    factor, exponent = f"{value:.{digits - 1}e}".split("e")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return power if float(factor) == 1 else f"{float(factor):.{digits}g}×{power}"


def power_of_two(value: float) -> str:
    exponent = math.log2(value)
    return "2" + str(round(exponent)).translate(_SUPERSCRIPTS) if exponent.is_integer() else number(value)
