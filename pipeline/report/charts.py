"""Line charts as geometry: what the page's template draws as SVG, in the page's own colours and type."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from pipeline.report.curves import Series, number

WIDTH, HEIGHT = 360, 236  # about the width of a phone: drawn one to one there, and three in a row on a desk
_LEFT, _TOP, _BOTTOM = 42, 12, 34  # room for tick labels, above, and below
_GAP, _CHARACTER = 8, 6.7  # before the name at the end of a line; its width for each character, at least
_LABEL_PITCH = 13  # least distance of two names
_MOST_POINTS = 320  # of a line: more than that are not seen
_MOST_DOTS = 24

Form = Callable[[float], str]


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        path: the `d` of an SVG path.
        dots: (x, y, what a pointer over it reads), for lines of few points.
        end: (x, y, text) of the name beside its end.
    """

    color: str
    path: str
    dots: list[tuple[float, float, str]]
    end: tuple[float, float, str]
    dashed: bool


@dataclass(frozen=True)
class Chart:
    """A panel: title, ticks, lines, and the words for those who do not see it."""

    title: str
    note: str
    description: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    empty: str = ""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: float = WIDTH - _GAP
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True)
class Axis:
    """How values become places: `scale` is linear, log10 or log2; `low` and `high` bound a linear axis where the data does not.

    `form` writes values, `tick_form` the ticks.
    """

    scale: str = "linear"
    low: float | None = None
    high: float | None = None
    form: Form = number
    tick_form: Form | None = None


def draw(
    title: str, series: Sequence[Series], axis: Axis, *, note: str = "", dashed: Sequence[str] = ()
) -> Chart:
    """Lay out one panel over epochs.

    On a logarithmic axis there is no place for 0: what is not above it is left out of the line, whose name then ends at the foot.

    Args:
        title: of the panel.
        series: the lines; one without values is left out.
        axis: of the values.
        note: a few words at the right of the title.
        dashed: names of lines drawn dashed.
    """
    series = [line for line in series if len(line.values)]
    num_epochs = max((float(line.epochs[-1]) for line in series), default=0.0) or 1.0
    empty = "nothing recorded"
    if axis.scale != "linear":
        empty = "nothing above 0" if series else empty
        series = [line for line in map(_positive, series) if len(line.values)]
    if not series:
        return Chart(title, note, f"{title}: {empty}.", [], [], [], empty=empty)
    ticks = _ticks(np.concatenate([line.values for line in series]), axis)
    bounds = _scaled(ticks[0], axis), _scaled(ticks[-1], axis)

    last = [axis.form(line.last) if math.isfinite(line.last) else "NaN" for line in series]
    words = [f"{line.name} {value}".strip() for line, value in zip(series, last, strict=True)]
    right = round(WIDTH - _GAP - _CHARACTER * max(*map(len, words), 10), 1)

    def x(epoch: float) -> float:
        return round(_LEFT + (right - _LEFT) * epoch / num_epochs, 1)

    def y(value: float) -> float:
        share = (_scaled(value, axis) - bounds[0]) / (bounds[1] - bounds[0])
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(max(share, 0.0), 1.0), 1)

    ends = _spread(
        [
            HEIGHT - _BOTTOM if line.last == 0 and axis.scale != "linear" else y(float(line.values[-1]))
            for line in series
        ]
    )
    lines = []
    for line, name, end in zip(series, words, ends, strict=True):
        kept = _thinned(line)
        path = "M" + "L".join(
            f"{x(float(e)):g} {y(float(v)):g}" for e, v in zip(kept.epochs, kept.values, strict=True)
        )
        dots = [
            (
                x(float(e)),
                y(float(v)),
                f"{line.name} {axis.form(float(v))} at epoch {number(float(e))}".strip(),
            )
            for e, v in zip(line.epochs, line.values, strict=True)
        ]
        few = len(dots) if len(dots) <= _MOST_DOTS else 0
        lines.append(Line(line.color, path, dots[:few], (right + _GAP, end, name), line.name in dashed))
    described = "; ".join(
        f"{line.name or 'value'} from {axis.form(float(line.values[0]))} to {value}"
        for line, value in zip(series, last, strict=True)
    )
    epochs = [
        float(tick)
        for tick in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(0, num_epochs)
        if 0 <= tick <= num_epochs
    ]
    return Chart(
        title,
        note,
        f"{title} over {number(num_epochs)} epochs: {described}.",
        lines,
        [(x(epoch), number(epoch)) for epoch in epochs],
        [(y(tick), (axis.tick_form or axis.form)(tick)) for tick in _few(ticks, axis)],
        right=right,
    )


def _ticks(values: np.ndarray, axis: Axis) -> list[float]:
    """Round values that reach around the data: the axis ends with the outermost."""
    low, high = float(values.min()), float(values.max())
    if axis.scale == "log2":
        return [
            2.0**exponent
            for exponent in range(math.floor(math.log2(low)) - 1, math.ceil(math.log2(high)) + 2)
        ]
    if axis.scale == "log10":
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
        return [
            max(tick for tick in ticks if tick <= low),
            *(tick for tick in ticks if low < tick < high),
            min(tick for tick in ticks if tick >= high and tick > low),
        ]
    if axis.high is not None:  # an accuracy of mixed labels can be rounded to a little more than 1
        low, high = min(axis.high, low), min(axis.high, high)
    low = low if axis.low is None else min(axis.low, low)
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    ticks = [float(tick) for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    return [tick for tick in ticks if axis.high is None or tick <= axis.high or math.isclose(tick, axis.high)]


def _few(ticks: list[float], axis: Axis) -> list[float]:
    """Of a logarithmic axis at most nine, so that their labels do not touch."""
    if axis.scale == "log10" and len(ticks) > 9:
        decades = [
            tick for tick in ticks if math.isclose(math.log10(tick), round(math.log10(tick)), abs_tol=1e-9)
        ]
        ticks = decades if len(decades) > 1 else ticks
    return ticks[:: -(-len(ticks) // 9)]


def _scaled(value: float, axis: Axis) -> float:
    return value if axis.scale == "linear" else math.log2(value)


def _positive(line: Series) -> Series:
    kept = line.values > 0
    return replace(line, epochs=line.epochs[kept], values=line.values[kept])


def _thinned(line: Series) -> Series:
    """At most some hundred points: of each stretch the first, the lowest and the highest, so that no excursion is lost."""
    if len(line.values) <= _MOST_POINTS:
        return line
    kept: set[int] = {len(line.values) - 1}
    for stretch in np.array_split(np.arange(len(line.values)), _MOST_POINTS // 3):
        values = line.values[stretch]
        kept |= {int(stretch[0]), int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    order = sorted(kept)
    return replace(line, epochs=line.epochs[order], values=line.values[order])


def _spread(places: list[float]) -> list[float]:
    """The places of names, moved apart where they would overlap and kept inside the chart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    spread = [places[i] for i in order]
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + _LABEL_PITCH)
    for i, floor in zip(
        reversed(range(len(spread))), np.arange(HEIGHT - _BOTTOM, 0, -_LABEL_PITCH), strict=False
    ):
        spread[i] = min(spread[i], float(floor))
    moved = dict(zip(order, spread, strict=True))
    return [round(moved[i], 1) for i in range(len(places))]
