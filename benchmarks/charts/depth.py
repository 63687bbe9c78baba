"""Draws the test error of the paper's networks by depth, ours beside those published.

The paper is He et al. 2015, arXiv:1512.03385, section 4.2.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator

from benchmarks.charts.bars import LABEL_PT, new_frame
from benchmarks.publish import published
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record, newest
from pipeline.plotting import style

_HEIGHT_PX, _LEFT_PX, _RIGHT_PX = 520, 96, 320
_NETWORK = re.compile(r"(plain|resnet)-?(20|32|44|56|110)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Point:
    """Test error of one depth, mean and standard deviation in per cent."""

    depth: int
    error: float
    deviation: float = 0.0


@dataclass(frozen=True)
class _Look:
    color: str
    dash: object = "-"
    above: bool = False  # numbers above the line, not below it


_OURS, _PLAIN = _Look(style.BLUE), _Look(style.VERMILLION, above=True)
_OTHERS = _Look(style.MUTED, (0, (4, 2)))


def is_by_depth(record: Record) -> bool:
    """Return True if this is a recipe of one of the paper's residual networks, with a place in the figure."""
    network = _parse(record.model or "")
    return network is not None and network[0] == "resnet" and record.dataset != "digits" and _is_shown(record)


def draw_depth(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw test error over the number of layers, a line for each source; ours with standard deviation."""
    recipes = newest([record for record in records if record.folder == folder and _is_shown(record)])
    last = next(record for record in reversed(recipes) if is_by_depth(record))
    recipes = [record for record in recipes if _setting(record) == _setting(last)]
    budget = f"{last.epochs:g} epochs at batch {last.batch_size}"
    counts = [record.accuracy_n or 0 for record in recipes if _parse(record.model or "")]
    n = f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"
    subtitle = f"ours: {budget}, last step, one view, mean ± σ ({n}), {last.gpu or 'CPU'}"
    with style.drawing([subtitle, last.data or ""]):
        figure, axes = new_frame(_HEIGHT_PX, _LEFT_PX, "Test error by depth", subtitle, _RIGHT_PX)
        for source, points in _published(recipes).items():
            _draw_line(axes, f"{source}, CIFAR-10", points, _OTHERS)
        residual, plain = _ours("resnet", recipes), _ours("plain", recipes)
        _draw_line(axes, f"ours, {last.data}", residual, _OURS)
        _draw_line(axes, f"ours without shortcuts, {last.data}", plain, _PLAIN)
        axes.xaxis.set_major_locator(FixedLocator(sorted({point.depth for point in (*residual, *plain)})))
        axes.margins(y=0.12)  # the numbers need room beyond the deviations
        axes.yaxis.set_major_locator(MultipleLocator(1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_xlabel("layers")
        axes.set_ylabel("test error")
        style.save_png(figure, path)


def _parse(network: str) -> tuple[str, int] | None:
    """Return family and depth of one of the paper's networks.

    >>> _parse("resnet56, fused norm"), _parse("ResNet-20"), _parse("plain20"), _parse("resnet18")
    (('resnet', 56), ('resnet', 20), ('plain', 20), None)
    """
    match = _NETWORK.match(network)
    return (match[1].lower(), int(match[2])) if match else None


def _is_shown(record: Record) -> bool:
    return record.benchmark == "recipe" and record.accuracy is not None and is_current(record)


def _setting(record: Record) -> tuple[object, ...]:
    return (record.data, record.epochs, record.batch_size)


def _ours(family: str, recipes: Sequence[Record]) -> list[Point]:
    points = []
    for record in recipes:
        network = _parse(record.model or "")
        if network is not None and network[0] == family and record.accuracy is not None:
            points.append(Point(network[1], 100 * (1 - record.accuracy), 100 * (record.accuracy_std or 0.0)))
    return sorted(points, key=lambda point: point.depth)


def _published(recipes: Sequence[Record]) -> dict[str, list[Point]]:
    """Return the published errors of the networks that we have recipes for, by source."""
    names = {record.variant for record in recipes}
    lines: dict[str, list[Point]] = {}
    for figure in published.read().figures:
        network = _parse(figure.network)
        if network is not None and figure.recipe in names:
            line = lines.setdefault(figure.label or figure.source.partition(",")[0], [])
            line.append(Point(network[1], 100 - figure.accuracy))
    return lines


def _draw_line(axes: Axes, name: str, points: Sequence[Point], look: _Look) -> None:
    """Draw a line with its name at the end and its numbers clear of the deviations."""
    if not points:
        return
    color = look.color
    depths, errors = [point.depth for point in points], [point.error for point in points]
    axes.plot(
        *(depths, errors),
        color=color,
        linestyle=look.dash,
        linewidth=2,
        marker="o",
        markersize=5,
        clip_on=False,
    )
    lowest, highest = ([p.error + side * p.deviation for p in points] for side in (-1, 1))
    axes.vlines(depths, lowest, highest, color=color, linewidth=1.5)
    side, ends = (1, highest) if look.above else (-1, lowest)
    text = {"textcoords": "offset points", "color": color, "annotation_clip": False, "va": "center"}
    for point, end in zip(points, ends, strict=True):
        place = (point.depth, end)
        axes.annotate(
            f"{point.error:.2f}", place, (0, side * 10), ha="center", fontsize=12 * style.PX, **text
        )
    narrow = name.replace(", ", ",\n", 1)  # a line that ends early has no room for its name on one line
    axes.annotate(narrow, (depths[-1], errors[-1]), (20, 0), fontsize=LABEL_PT, **text)
