"""Draws the sizes and classes of a folder of images."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pipeline.data.files.check import Checked
from pipeline.plotting import style
from pipeline.plotting.page import Page

_WIDTH_PX, _HEIGHT_PX = 1200, 560
_BINS = 40


def draw_sizes(checked: Checked, path: Path) -> Path:
    """Draw histograms of the shorter side and of width by height, and the number of images of each class."""
    sizes = checked.good_sizes.astype(np.float64)
    shorter, ratio = sizes.min(axis=1), sizes[:, 1] / sizes[:, 0]
    root = style.one_line(checked.listing.root.resolve().name)
    with style.drawing([root]):
        page = Page(_WIDTH_PX, _HEIGHT_PX)
        bad = f", {len(checked.bad):,} files cannot be used" if checked.bad else ""
        page.write(72, 46, f"{root}: {len(sizes):,} images{bad}", 19, weight="bold")
        panels = [page.axes(left, 146, 300, 336) for left in (72, 462, 852)]
        _histogram(panels[0], shorter, "Shorter side", "pixels")
        _histogram(panels[1], ratio, "Width by height", "ratio")
        _classes(panels[2], checked)
        style.save_png(page.figure, path)
    return path


def _histogram(axes: Axes, values: np.ndarray, title: str, unit: str) -> None:
    """Draw logarithmic bins from the smallest to the largest value; equal values stand in the middle."""
    low, high = values.min(), values.max()
    if low == high:
        low, high = low / 1.5, high * 1.5
    axes.hist(values, bins=np.geomspace(low, high, _BINS).tolist(), color=style.BLUE)
    axes.set_xscale("log")
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    axes.set_title(title)
    axes.set_xlabel(unit)
    ticks = sorted({float(f"{value:.3g}") for value in (low, middle, high)})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _classes(axes: Axes, checked: Checked) -> None:
    axes.set_title("Images a class")
    for part, color in (("train", style.BLUE), ("test", style.VERMILLION)):
        counts = np.sort(checked.class_counts(part))[::-1]
        axes.step(
            np.arange(len(counts) + 1), np.append(counts, counts[-1]), where="post", color=color, label=part
        )
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, len(checked.listing.classes))
    axes.set_xlabel("classes, the largest first")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    # above the axes: classes of one size are a line along the top
    axes.legend(
        frameon=False,
        fontsize=13 * style.PX,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=2,
    )
