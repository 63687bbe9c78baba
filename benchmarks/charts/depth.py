"""Draws the test error of the paper's networks by depth, ours beside those published.

The paper is He et al. 2015, arXiv:1512.03385, section 4.2.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

from benchmarks.charts.bars import LABEL_PT, new_frame
from benchmarks.publish import published
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record, newest
from pipeline.plotting import style

_HEIGHT_PX, _LEFT_PX, _RIGHT_PX = 620, 96, 250
_LINE_PX = 18  # height of a line of text: names of lines that end together stand at least this far apart
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


_OURS, _PLAIN = _Look(style.BLUE), _Look(style.VERMILLION)
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
        residual, plain = _ours("resnet", recipes), _ours("plain", recipes)
        lines = [
            *((f"{source}, CIFAR-10", points, _OTHERS) for source, points in _published(recipes).items()),
            (f"ours, {last.data}", residual, _OURS),
            (f"ours without shortcuts, {last.data}", plain, _PLAIN),
        ]
        every_point = [point for _, points, _ in lines for point in points]
        axes.set_xscale("log")  # between 56 and 110 layers there is no network
        for _, points, look in lines:
            _draw_line(axes, points, look, every_point)
        axes.xaxis.set_major_locator(FixedLocator(sorted({point.depth for point in (*residual, *plain)})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.margins(y=0.12)  # the numbers need room beyond the deviations
        _draw_names(axes, lines)
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


def _draw_line(axes: Axes, points: Sequence[Point], look: _Look, every_point: Sequence[Point]) -> None:
    """Draw a line with its numbers.

    A number stands clear of the deviations: below its own if the error is the lowest of its depth, otherwise
    above its own and that of the lowest.
    """
    depths, errors = [point.depth for point in points], [point.error for point in points]
    axes.plot(
        *(depths, errors),
        color=look.color,
        linestyle=look.dash,
        linewidth=2,
        marker="o",
        markersize=5,
        clip_on=False,
    )
    for point in points:
        lowest, highest = point.error - point.deviation, point.error + point.deviation
        axes.vlines(point.depth, lowest, highest, color=look.color, linewidth=1.5)
        lowest_point = min((p for p in every_point if p.depth == point.depth), key=lambda p: p.error)
        is_lowest = point.error == lowest_point.error
        highest = max(highest, lowest_point.error + lowest_point.deviation)
        place, side = ((point.depth, lowest), -1) if is_lowest else ((point.depth, highest), 1)
        _write(axes, f"{point.error:.2f}", place, (0, side * 10), look, ha="center", fontsize=12 * style.PX)


def _draw_names(axes: Axes, lines: Sequence[tuple[str, Sequence[Point], _Look]]) -> None:
    """Write the name of each line at its end. Names of lines that end together do not cover each other."""
    ended = sorted((points[-1].error, points[-1].depth, name, look) for name, points, look in lines if points)
    deepest = max(depth for _, depth, _, _ in ended)
    low, high = axes.get_ylim()
    pixel = (high - low) / axes.get_window_extent().height  # in per cent of error
    above = -math.inf  # the lowest place that is free at the right edge
    for error, depth, name, look in ended:
        if depth < deepest:  # a line that ends early has no room for its name on one line
            _write(axes, name.replace(", ", ",\n", 1), (depth, error), (20, 0), look, fontsize=LABEL_PT)
            continue
        above = max(error, above)
        _write(axes, name, (depth, above), (20, 0), look, fontsize=LABEL_PT)
        above += _LINE_PX * pixel


def _write(
    axes: Axes, text: str, place: tuple[float, float], offset: tuple[int, int], look: _Look, **keys: Any
) -> None:
    axes.annotate(
        *(text, place, offset),
        textcoords="offset points",
        color=look.color,
        annotation_clip=False,
        va="center",
        **keys,
    )
