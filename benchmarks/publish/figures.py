"""Figures made from records: throughput by batch size and loader, training from image files, what each switch of the ablation brings,
and the error by depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.measure.cells import count, thousands
from benchmarks.publish.depth import draw_depth, is_by_depth
from benchmarks.publish.frame import MARGINS_PX, new_frame
from benchmarks.publish.records import FOLDER, Record, newest
from pipeline.plotting import style

FOLDER_OF_FIGURES = FOLDER / "figures"

_HEIGHT_PX = 620
_LEFT_PX = 96
_ROW_PX = 46
_LABEL_PITCH_PX = 20
_BAR_HEIGHT, _BARS_SHARE = (
    0.62,
    0.78,
)  # of a row; of the width, the rest being for the figures beside the bars

# Ours in colour and solid, what they are compared with dashed or grey.
_LOOKS = {
    "fused": (style.VERMILLION, "-"),
    "dali": (style.BLUE, "-"),
    "dali-naive": (style.BLUE, (0, (4, 2))),
    "airbench": (style.GREEN, (0, (4, 2))),
    "torchvision": (style.MUTED, (0, (4, 2))),
    "synthetic": (style.MUTED, "-"),
}
_STEP = "the training step"
_LARGE_IMAGE = 128  # pixels: from here on images are streamed from their files


def _of(benchmark: str, folder: str, records: Sequence[Record]) -> list[Record]:
    return [
        record
        for record in newest(records)
        if record.benchmark == benchmark and record.folder == folder and record.images_per_sec
    ]


def _is_streamed(record: Record) -> bool:
    return record.image_size >= _LARGE_IMAGE


def _draw_throughput(folder: str, records: Sequence[Record], path: Path) -> None:
    """Images/sec over batch size, both logarithmic, a line for each loader; the step's own rate beside them."""
    loaders = [record for record in _of("loader", folder, records) if not _is_streamed(record)]
    shown = loaders[-1]  # one kind of images and augmentation in one figure: the newest
    loaders = [
        r
        for r in loaders
        if (*_setting(r), r.dataset, r.augment) == (*_setting(shown), shown.dataset, shown.augment)
    ]
    lines = {
        name: [r for r in loaders if r.variant == name] for name in dict.fromkeys(r.variant for r in loaders)
    }
    steps = [
        r
        for r in _of("end_to_end", folder, records)
        if r.loader == "synthetic" and _setting(r) == _setting(shown)
    ]
    if steps:
        lines[_STEP] = [
            r
            for r in steps
            if (r.model, r.precision, r.compile_mode)
            == (steps[-1].model, steps[-1].precision, steps[-1].compile_mode)
        ]
    subtitle = f"{shown.gpu or 'CPU'}, {shown.image_size}×{shown.image_size} images, {shown.augment}; median, band from p10 to p90"
    if steps:
        subtitle += f"; {_STEP}: {steps[-1].model}, {steps[-1].precision}"
    with style.drawing([subtitle]):
        figure, axes = new_frame(_HEIGHT_PX, _LEFT_PX, "Loader throughput by batch size", subtitle)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for name, line in lines.items():
            _line(axes, name, sorted(line, key=lambda record: record.batch_size))
        sizes = sorted({record.batch_size for line in lines.values() for record in line})
        axes.xaxis.set_major_locator(FixedLocator(sizes))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("batch size")
        axes.set_ylabel("images per second")
        _label_ends(axes, lines)
        style.save_png(figure, path)


def _setting(record: Record) -> tuple[object, ...]:
    """What the records of one line have in common, beside the loader."""
    return (record.image_size, record.precision, record.world_size)


def _line(axes: Axes, name: str, line: list[Record]) -> None:
    color, dash = _LOOKS.get(name, (style.INK, "-"))
    sizes = [record.batch_size for record in line]
    rates = [record.images_per_sec for record in line if record.images_per_sec]
    axes.fill_between(
        sizes,
        [rate.p10 for rate in rates],
        [rate.p90 for rate in rates],
        color=color,
        alpha=0.15,
        linewidth=0,
    )
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


def _short(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def _label_ends(axes: Axes, lines: dict[str, list[Record]]) -> None:
    """Each line's name and last value beside its end, moved apart where they would overlap."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    pitch = _LABEL_PITCH_PX / axes.get_window_extent().height
    ends = []
    for name, line in lines.items():
        last = max(line, key=lambda record: record.batch_size)
        if last.images_per_sec:
            ends.append(
                (
                    float(to_axes.transform((1, last.images_per_sec.median))[1]),
                    name,
                    last.images_per_sec.median,
                )
            )
    floor = float("-inf")
    for place, name, rate in sorted(ends):
        floor = max(place, floor + pitch)
        color = _LOOKS.get(name, (style.INK, "-"))[0]
        axes.text(
            1.03,
            floor,
            f"{name}  {thousands(rate)}",
            transform=axes.transAxes,
            va="center",
            fontsize=13 * style.PX,
            color=color,
        )


def _draw_waterfall(folder: str, records: Sequence[Record], path: Path) -> None:
    """What each switch brings when it is added to those before: on a logarithmic axis equal lengths are equal factors."""
    steps = _cumulative(folder, records)
    rates = [record.images_per_sec.median for record in steps if record.images_per_sec]
    last = steps[-1]
    with_accuracy = any(record.accuracy is not None for record in steps)
    right = (
        f"; right: test accuracy after {last.epochs:g} epochs (n = {last.accuracy_n})"
        if with_accuracy and last.epochs
        else ""
    )
    subtitle = (
        f"{last.gpu or 'CPU'}, {_network(last)}, batch {last.batch_size}, loader and step together{right}"
    )
    height_px = MARGINS_PX + _ROW_PX * len(steps)
    with style.drawing([subtitle]):
        figure, axes = new_frame(height_px, 230, "From the plain recipe to the full one", subtitle)
        axes.set_xscale("log")
        left = min(rates) / 1.6
        axes.set_xlim(left, left * (max(rates) / left) ** (1 / _BARS_SHARE))
        axes.set_ylim(len(steps) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        for row, (record, rate) in enumerate(zip(steps, rates, strict=True)):
            before = rates[row - 1] if row else left
            color = style.MUTED if not row else style.BLUE if rate >= before else style.VERMILLION
            axes.barh(row, rate - before, left=before, height=_BAR_HEIGHT, color=color)
            if row:
                axes.plot(
                    [before] * 2,
                    [row - 1 + _BAR_HEIGHT / 2, row - _BAR_HEIGHT / 2],
                    color=style.MUTED,
                    linewidth=0.8,
                )
            factor = f"   × {rate / before:.2f}" if row else ""
            axes.text(
                max(rate, before) * 1.02, row, f"{count(rate)}{factor}", va="center", fontsize=13 * style.PX
            )
            if record.accuracy is not None:
                axes.text(
                    1.03,
                    row,
                    _accuracy(record),
                    transform=axes.get_yaxis_transform(),
                    va="center",
                    fontsize=13 * style.PX,
                    color=style.MUTED,
                )
        axes.yaxis.set_major_locator(FixedLocator(range(len(steps))))
        axes.set_yticklabels([record.variant for record in steps], color=style.INK)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("images per second")
        style.save_png(figure, path)


def _draw_streamed(folder: str, records: Sequence[Record], path: Path) -> None:
    """Training from image files on one GPU: a bar for each loader at its fastest, beside the step without a loader."""
    found = [
        record
        for record in _of("end_to_end", folder, records)
        if _is_streamed(record) and record.world_size == 1
    ]
    network = _network(found[-1])
    found = [
        record
        for record in found
        if _network(record) == network and record.image_size == found[-1].image_size
    ]
    best = {
        loader: max((r for r in found if r.loader == loader), key=_rate)
        for loader in dict.fromkeys(r.loader or "" for r in found)
    }
    bars = sorted(best.values(), key=_rate, reverse=True)
    size = bars[0].image_size
    subtitle = f"{bars[0].gpu or 'CPU'}, {bars[0].cpu_cores} CPU cores, {size}×{size}, {bars[0].precision}; median, line from p10 to p90"
    with style.drawing([subtitle]):
        title = f"{network.replace('resnet', 'ResNet-')} from JPEG files: images per second"
        figure, axes = new_frame(MARGINS_PX + _ROW_PX * len(bars), 330, title, subtitle, right_px=40)
        axes.set_xlim(0, _rate(bars[0]) / _BARS_SHARE)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        for row, record in enumerate(bars):
            rate = record.images_per_sec
            assert rate is not None
            axes.barh(
                row,
                rate.median,
                height=_BAR_HEIGHT,
                color=style.BLUE if record.loader == "dali" else style.MUTED,
            )
            axes.plot([rate.p10, rate.p90], [row, row], color=style.INK, linewidth=1.5)
            axes.text(
                max(rate.median, rate.p90) + 0.01 * _rate(bars[0]),
                row,
                count(rate.median),
                va="center",
                fontsize=13 * style.PX,
            )
        axes.yaxis.set_major_locator(FixedLocator(range(len(bars))))
        axes.set_yticklabels([_streamed_name(record) for record in bars], color=style.INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.set_xlabel("images per second")
        style.save_png(figure, path)


def _network(record: Record) -> str:
    """`resnet18, fused norm` → `resnet18`."""
    return (record.model or "").partition(",")[0]


def _rate(record: Record) -> float:
    return record.images_per_sec.median if record.images_per_sec else 0.0


def _streamed_name(record: Record) -> str:
    data, batch = record.config["data"], f"batch {record.batch_size}"
    names = {
        "synthetic": f"the step's own limit, {batch}",
        "dali": f"DALI, files decoded by the {data.get('decoder', 'gpu').upper()}, {batch}",
        "torchvision": f"torchvision, {data['num_threads']} workers, {batch}",
    }
    return names.get(record.loader or "", f"{record.loader}, {batch}")


def _accuracy(record: Record) -> str:
    deviation = f" ± {100 * record.accuracy_std:.2f}" if record.accuracy_std is not None else ""
    return f"{100 * (record.accuracy or 0):.2f}{deviation} %"


def _cumulative(folder: str, records: Sequence[Record]) -> list[Record]:
    """The cumulative series of the newest ablation."""
    steps = [
        record
        for record in _of("ablation", folder, records)
        if record.variant == "plain" or record.variant.startswith("+ ")
    ]

    def of(record: Record) -> tuple[object, ...]:
        # the network by name: what is said of it further is a switch
        return (_network(record), record.dataset, record.image_size, record.batch_size, record.world_size)

    return [record for record in steps if of(record) == of(steps[-1])]


@dataclass(frozen=True)
class _FigureKind:
    """
    Attributes:
        benchmark: whose records it needs.
        shows: which of them.
        alt: what it shows, for those who do not see it.
    """

    benchmark: str
    shows: Callable[[Record], bool]
    alt: str
    draw: Callable[[str, Sequence[Record], Path], None]


FIGURES = {
    "depth": _FigureKind(
        "recipe",
        is_by_depth,
        "Test error of the paper's networks by depth, ours beside the paper's",
        draw_depth,
    ),
    "streamed": _FigureKind(
        "end_to_end",
        lambda record: _is_streamed(record) and record.world_size == 1,
        "Images per second of training from image files, by loader, beside the step's own limit",
        _draw_streamed,
    ),
    "throughput": _FigureKind(
        "loader",
        lambda record: not _is_streamed(record),
        "Images per second by batch size and loader",
        _draw_throughput,
    ),
    "waterfall": _FigureKind(
        "ablation", lambda _: True, "Images per second as one switch after the other is set", _draw_waterfall
    ),
}


def paths(name: str, records: Sequence[Record], folder: Path = FOLDER_OF_FIGURES) -> list[Path]:
    """Where the figures of this name are, one for each machine that has records for it."""
    kind = FIGURES[name]
    machines = dict.fromkeys(
        r.folder for r in records if r.benchmark == kind.benchmark and r.images_per_sec and kind.shows(r)
    )
    return [folder / f"{machine}-{name}.png" for machine in machines]


def draw_all(records: Sequence[Record], folder: Path = FOLDER_OF_FIGURES) -> list[Path]:
    """Draw every figure that there are records for."""
    drawn = []
    for name, kind in FIGURES.items():
        for path in paths(name, records, folder):
            folder.mkdir(parents=True, exist_ok=True)
            kind.draw(path.name.removesuffix(f"-{name}.png"), records, path)
            drawn.append(path)
    return drawn
