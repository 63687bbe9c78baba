"""Draws the throughput of loaders by batch size."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.charts.bars import LABEL_PT, new_frame, short, use_log_x
from benchmarks.charts.streamed import is_streamed
from benchmarks.measure.cells import thousands
from benchmarks.publish.records import Record, newest_of
from pipeline.plotting import style

Lines = dict[str, list[Record]]  # by the name of the line

_HEIGHT_PX, _LEFT_PX = 620, 96
_LABEL_PITCH_PX = 20
# Ours in colour and solid, the comparisons dashed or grey.
_LOOKS = {
    "fused": (style.VERMILLION, "-"),
    "dali": (style.BLUE, "-"),
    "dali-naive": (style.BLUE, (0, (4, 2))),
    "airbench": (style.GREEN, (0, (4, 2))),
    "torchvision": (style.MUTED, (0, (4, 2))),
    "synthetic": (style.MUTED, "-"),
}
_OTHER_LOOK = (style.INK, "-")
_STEP = "the training step"


def draw_throughput(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw images/sec over batch size, both logarithmic: a line for each loader, and one for the step."""
    lines = _lines(folder, records)
    sizes = sorted({record.batch_size for line in lines.values() for record in line})
    subtitle = _subtitle(lines)
    with style.drawing([subtitle]):
        figure, axes = new_frame(_HEIGHT_PX, _LEFT_PX, "Loader throughput by batch size", subtitle)
        use_log_x(axes, base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.set_xlabel("batch size")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("images per second")
        for name, line in lines.items():
            _draw_line(axes, name, line)
        _label_ends(axes, lines)
        style.save_png(figure, path)


def _lines(folder: str, records: Sequence[Record]) -> Lines:
    """Return the lines by batch size, of the kind of images and augmentation that was measured last."""
    loaders = [record for record in newest_of("loader", folder, records) if not is_streamed(record)]
    last = loaders[-1]
    lines: Lines = {}
    for record in loaders:
        if (_setting(record), record.dataset, record.augment) == (_setting(last), last.dataset, last.augment):
            lines.setdefault(record.variant, []).append(record)
    steps = [
        record
        for record in newest_of("end_to_end", folder, records)
        if record.loader == "synthetic" and _setting(record) == _setting(last)
    ]
    if steps:
        lines[_STEP] = [record for record in steps if _step(record) == _step(steps[-1])]
    return {name: sorted(line, key=lambda record: record.batch_size) for name, line in lines.items()}


def _setting(record: Record) -> tuple[object, ...]:
    return (record.image_size, record.precision, record.world_size)


def _step(record: Record) -> tuple[object, ...]:
    return (record.model, record.precision, record.compile_mode)


def _subtitle(lines: Lines) -> str:
    shown = next(iter(lines.values()))[0]
    size = f"{shown.image_size}×{shown.image_size} images"
    text = f"{shown.gpu or 'CPU'}, {size}, {shown.augment}; median, band from p10 to p90"
    if _STEP in lines:
        text += f"; {_STEP}: {lines[_STEP][0].model}, {lines[_STEP][0].precision}"
    return text


def _draw_line(axes: Axes, name: str, line: Sequence[Record]) -> None:
    color, dash = _LOOKS.get(name, _OTHER_LOOK)
    sizes = [record.batch_size for record in line]
    rates = [record.images_per_sec for record in line if record.images_per_sec]
    lowest, highest = [rate.p10 for rate in rates], [rate.p90 for rate in rates]
    axes.fill_between(sizes, lowest, highest, color=color, alpha=0.15, linewidth=0)
    axes.plot(
        sizes,
        [rate.median for rate in rates],
        color=color,
        linestyle=dash,
        linewidth=2,
        marker="o",
        markersize=5,
        clip_on=False,
    )


def _label_ends(axes: Axes, lines: Lines) -> None:
    """Write name and last value of each line beside its end, moved apart if labels would overlap."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    pitch = _LABEL_PITCH_PX / axes.get_window_extent().height
    rates = {name: line[-1].rate or 0.0 for name, line in lines.items()}
    heights = {name: float(to_axes.transform((1, rate))[1]) for name, rate in rates.items()}
    lowest = float("-inf")
    for height, name in sorted((height, name) for name, height in heights.items()):
        lowest = max(height, lowest + pitch)
        axes.text(
            1.03,
            lowest,
            f"{name}  {thousands(rates[name])}",
            transform=axes.transAxes,
            va="center",
            fontsize=LABEL_PT,
            color=_LOOKS.get(name, _OTHER_LOOK)[0],
        )
