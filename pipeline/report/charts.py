"""Lays out line charts: each place is computed once, in pixels.

The template of the page paints a chart as SVG, in the page's own colours and type; `curves.py` paints it into
a PNG.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipeline.report.series import Series, number, tick_labels

WIDTH, HEIGHT = 360, 236  # about the width of a phone: shown at this size there, and three in a row on a desk
_LEFT, _TOP, _BOTTOM = 42, 12, 34  # least space for tick labels, space above the lines, and below them
_TICK_GAP, _TICK_CHARACTER = 6, 6.7  # after a tick label; the label's width for each character
_GAP, _CHARACTER = 8, 7.1  # before the label at the end of a line; the label's width for each character
_LABEL_PITCH = 13  # least distance between two labels
_MAX_POINTS = 320  # of one line: more are not visible
_MAX_DOTS = 24
_MAX_TICKS = 9  # on the vertical axis: the labels of more would touch

Format = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        color: a class of the style sheet.
        points: (x, y) of the line.
        dots: (x, y, tooltip), for lines of few points.
        end: (x, y, text) of the label beside the line's end.
        star: (x, y) of the best value, if it is marked.
    """

    color: str
    points: list[tuple[float, float]]
    dots: list[tuple[float, float, str]]
    end: tuple[float, float, str]
    star: tuple[float, float] | None

    @property
    def path(self) -> str:
        """The `d` of an SVG path."""
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """One chart: its title, lines and ticks, and a description for readers who cannot see it.

    Attributes:
        note: a few words at the right of the title.
        x_ticks, y_ticks: (place, label).
        empty: lines of text that stand in the middle of a chart without lines.
    """

    title: str
    note: str
    description: str
    lines: list[Line] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    empty: tuple[str, ...] = ()

    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: float = WIDTH - _GAP
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Axis:
    """The vertical axis.

    Attributes:
        scale: `linear`, `log10` or `log2`.
        low, high: bounds of a linear axis; values below `low` extend it.
        format: writes a value.
        tick_format: writes a tick. By default as `format`, and on a linear axis as `tick_labels` does.
    """

    scale: str = "linear"
    low: float | None = None
    high: float | None = None
    format: Format = number
    tick_format: Format | None = None

    @property
    def remark(self) -> str:
        """Words on the axis for readers who cannot see it."""
        return "" if self.scale == "linear" else ", on a logarithmic axis"

    def scaled(self, value: float) -> float:
        return value if self.scale == "linear" else math.log2(value)

    def write(self, value: float) -> str:
        return self.format(value) if math.isfinite(value) else "NaN"

    def ticks(self, values: np.ndarray) -> list[float]:
        """Return round numbers around the values; the axis ends with the outermost two."""
        low, high = float(values.min()), float(values.max())
        if self.scale == "log2":
            return [2.0**n for n in range(math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 2)]
        if self.scale == "log10":
            decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
            ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
            first, last = max(t for t in ticks if t <= low), min(t for t in ticks if t >= high and t > low)
            return [t for t in ticks if first <= t <= last]
        if self.high is not None:  # an accuracy of mixed labels can be rounded to a little more than 1
            low, high = min(self.high, low), min(self.high, high)
        low = low if self.low is None else min(self.low, low)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        ticks = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [
            t for t in map(float, ticks) if self.high is None or t <= self.high or math.isclose(t, self.high)
        ]

    def labels(self, ticks: list[float]) -> list[tuple[float, str]]:
        """Return the ticks that get a label, each with its label."""
        if self.scale == "log10" and len(ticks) > _MAX_TICKS:
            exponents = [math.log10(tick) for tick in ticks]
            decades = [t for t, n in zip(ticks, exponents, strict=True) if abs(n - round(n)) < 1e-9]
            ticks = decades if len(decades) > 1 else ticks
        ticks = ticks[:: -(-len(ticks) // _MAX_TICKS)]
        if self.tick_format is None and self.scale == "linear":
            return list(zip(ticks, tick_labels(ticks), strict=True))
        write = self.tick_format or self.format
        return [(tick, write(tick)) for tick in ticks]


def lay_out(title: str, series: Sequence[Series], axis: Axis, note: str = "") -> Chart:
    """Lay out one chart over the epochs.

    A logarithmic axis has no place for 0 and less. Such values are left out of their line; the line's label
    then stands at the foot of the chart.

    Args:
        title: of the chart.
        series: the lines; one without values is left out.
        axis: of the values.
        note: a few words at the right of the title; a logarithmic axis is named there.
    """
    measured = [line for line in series if len(line.values)]
    drawn = measured
    if axis.scale != "linear":
        drawn = [line for line in (line.where(line.values > 0) for line in measured) if len(line.values)]
    if axis.scale != "linear":
        note = " · ".join(filter(None, [note, "logarithmic"]))
    if not drawn:
        empty = "nothing above 0" if measured else "nothing recorded"
        return Chart(title, note, f"{title}: {empty}.", empty=(empty,))
    num_epochs = max(float(line.epochs[-1]) for line in measured) or 1.0
    labels = [f"{line.name} {axis.write(line.last)}".strip() for line in drawn]
    right = round(WIDTH - _GAP - _CHARACTER * max(*map(len, labels), 10), 1)
    ticks = axis.ticks(np.concatenate([line.values for line in drawn]))
    y_labels = axis.labels(ticks)
    left = max(_LEFT, math.ceil(_TICK_GAP + _TICK_CHARACTER * max(len(text) for _, text in y_labels)))
    frame = _Frame(axis, ticks[0], ticks[-1], num_epochs, left, right)
    ends = _spread([frame.end(line) for line in drawn])
    changes = [
        f"{line.name or 'value'} from {axis.format(float(line.values[0]))} to {axis.write(line.last)}"
        for line in drawn
    ]
    return Chart(
        title,
        note,
        f"{title} over {number(num_epochs)} epochs{axis.remark}: {'; '.join(changes)}.",
        [frame.line(line, label, end) for line, label, end in zip(drawn, labels, ends, strict=True)],
        [(frame.x(epoch), number(epoch)) for epoch in _epoch_ticks(num_epochs)],
        [(frame.y(tick), label) for tick, label in y_labels],
        left=left,
        right=right,
    )


@dataclass(frozen=True)
class _Frame:
    """The rectangle of the lines: from 0 to `num_epochs`, and from the value `low` to the value `high`."""

    axis: Axis
    low: float
    high: float
    num_epochs: float
    left: float
    right: float

    def x(self, epoch: float) -> float:
        return round(self.left + (self.right - self.left) * epoch / self.num_epochs, 1)

    def y(self, value: float) -> float:
        low, high = self.axis.scaled(self.low), self.axis.scaled(self.high)
        height = (self.axis.scaled(value) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(max(height, 0.0), 1.0), 1)

    def end(self, line: Series) -> float:
        """Return the height of the last value."""
        at_foot = line.last == 0 and self.axis.scale != "linear"
        return HEIGHT - _BOTTOM if at_foot else self.y(float(line.values[-1]))

    def points(self, line: Series) -> list[tuple[float, float]]:
        pairs = zip(line.epochs.tolist(), line.values.tolist(), strict=True)
        return [(self.x(epoch), self.y(value)) for epoch, value in pairs]

    def line(self, line: Series, label: str, end: float) -> Line:
        points = self.points(line)
        dots = []
        if len(points) <= _MAX_DOTS:
            for (x, y), epoch, value in zip(points, line.epochs.tolist(), line.values.tolist(), strict=True):
                tooltip = f"{line.name} {self.axis.format(value)} at epoch {number(epoch)}"
                dots.append((x, y, tooltip.strip()))
        star = points[int(line.values.argmax())] if line.starred else None
        return Line(line.color, self.points(_thinned(line)), dots, (self.right + _GAP, end, label), star)


def _epoch_ticks(num_epochs: float) -> list[float]:
    ticks = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0, num_epochs)
    return [tick for tick in map(float, ticks) if 0 <= tick <= num_epochs]


def _thinned(line: Series) -> Series:
    """Keep of each stretch of a long line the first, the lowest and the highest point, so no peak is lost."""
    if len(line.values) <= _MAX_POINTS:
        return line
    selected: set[int] = {len(line.values) - 1}
    for stretch in np.array_split(np.arange(len(line.values)), _MAX_POINTS // 3):
        values = line.values[stretch]
        selected |= {int(stretch[0]), int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    return line.where(sorted(selected))


def _spread(places: list[float]) -> list[float]:
    """Move labels apart where they would overlap, and keep them inside the chart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + _LABEL_PITCH)
    lowest = np.arange(HEIGHT - _BOTTOM, 0, -_LABEL_PITCH).tolist()
    for i, limit in zip(reversed(range(len(moved))), lowest, strict=False):
        moved[i] = min(moved[i], limit)
    by_label = dict(zip(order, moved, strict=True))
    return [round(by_label[i], 1) for i in range(len(places))]
