"""The test error of the paper's networks by depth (He et al. 2015, arXiv:1512.03385, section 4.2), ours beside those published."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator

from benchmarks.publish import published
from benchmarks.publish.frame import new_frame
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record, newest
from pipeline.plotting import style

_HEIGHT_PX, _LEFT_PX, _RIGHT_PX = 520, 96, 320
_NETWORK = re.compile(r"(plain|resnet)-?(20|32|44|56|110)\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Point:
    depth: int
    error: float
    deviation: float = 0.0


def _parse(network: str) -> tuple[str, int] | None:
    """
    >>> _parse("resnet56, fused norm"), _parse("ResNet-20"), _parse("plain20"), _parse("resnet18")
    (('resnet', 56), ('resnet', 20), ('plain', 20), None)
    """
    found = _NETWORK.match(network)
    return (found[1].lower(), int(found[2])) if found else None


def is_by_depth(record: Record) -> bool:
    """Whether this is a recipe of one of the paper's residual networks, which has its place in the figure."""
    network = _parse(record.model or "")
    return network is not None and network[0] == "resnet" and record.dataset != "digits" and _is_told(record)


def _is_told(record: Record) -> bool:
    return record.benchmark == "recipe" and record.accuracy is not None and is_current(record)


def draw_depth(folder: str, records: Sequence[Record], path: Path) -> None:
    """Error in per cent over the number of layers, a line for each source, ours with one standard deviation up and down."""
    recipes = newest([record for record in records if record.folder == folder and _is_told(record)])
    shown = next(r for r in reversed(recipes) if is_by_depth(r))
    recipes = [
        r for r in recipes if (r.data, r.epochs, r.batch_size) == (shown.data, shown.epochs, shown.batch_size)
    ]
    budget = f"{shown.epochs:g} epochs at batch {shown.batch_size}"
    subtitle = f"ours: {budget}, last step, one view, mean ± σ (n = {shown.accuracy_n}), {shown.gpu or 'CPU'}"
    with style.drawing([subtitle, shown.data or ""]):
        figure, axes = new_frame(_HEIGHT_PX, _LEFT_PX, "Test error by depth", subtitle, _RIGHT_PX)
        for source, points in _others(recipes).items():
            _line(axes, f"{source}, CIFAR-10", points, style.MUTED, (0, (4, 2)))
        residual, plain = _ours("resnet", recipes), _ours("plain", recipes)
        _line(axes, f"ours, {shown.data}", residual, style.BLUE, "-")
        _line(axes, f"ours without shortcuts, {shown.data}", plain, style.VERMILLION, "-", above=True)
        axes.xaxis.set_major_locator(FixedLocator(sorted({point.depth for point in (*residual, *plain)})))
        axes.yaxis.set_major_locator(MultipleLocator(2))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("layers")
        axes.set_ylabel("test error")
        style.save_png(figure, path)


def _ours(family: str, recipes: Sequence[Record]) -> list[_Point]:
    points = []
    for record in recipes:
        network = _parse(record.model or "")
        if network is not None and network[0] == family and record.accuracy is not None:
            points.append(_Point(network[1], 100 * (1 - record.accuracy), 100 * (record.accuracy_std or 0.0)))
    return sorted(points, key=lambda point: point.depth)


def _others(recipes: Sequence[Record]) -> dict[str, list[_Point]]:
    """By source, what others published of the networks that we have recipes for."""
    names = {record.variant for record in recipes}
    lines: dict[str, list[_Point]] = {}
    for figure in published.read().figures:
        network = _parse(figure.network)
        if network is not None and figure.recipe in names:
            lines.setdefault(figure.label or figure.source.partition(",")[0], []).append(
                _Point(network[1], 100 - figure.accuracy)
            )
    return lines


def _line(
    axes: Axes, name: str, points: Sequence[_Point], color: str, dash: object, *, above: bool = False
) -> None:
    """The figures stand clear of the deviations, below the line, or above it."""
    if not points:
        return
    depths, errors = [point.depth for point in points], [point.error for point in points]
    axes.plot(
        depths, errors, color=color, linestyle=dash, linewidth=2, marker="o", markersize=5, clip_on=False
    )
    axes.vlines(
        depths,
        [p.error - p.deviation for p in points],
        [p.error + p.deviation for p in points],
        color=color,
        linewidth=1.5,
    )
    text = {"textcoords": "offset points", "color": color, "annotation_clip": False}
    side = 1 if above else -1
    for p in points:
        place = (p.depth, p.error + side * p.deviation)
        axes.annotate(
            f"{p.error:.2f}", place, (0, side * 10), ha="center", va="center", fontsize=12 * style.PX, **text
        )
    axes.annotate(name, (depths[-1], errors[-1]), (14, 0), va="center", fontsize=13 * style.PX, **text)
