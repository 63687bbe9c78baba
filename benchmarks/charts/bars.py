"""Draws the parts that the figures of records share: frame, bars, labels, and the text of an axis."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.plotting import style

LABEL_PT = 13 * style.PX
BARS_FRACTION = 0.78  # of the width of a bar chart; the labels beside the bars take the rest

_WIDTH_PX = 1100
_TOP_PX, _BOTTOM_PX, _RIGHT_PX = 110, 74, 210
_ROW_PX = 46
_BAR_HEIGHT = 0.62  # of a row


def new_frame(
    height_px: int,
    left_px: int,
    title: str,
    subtitle: str,
    right_px: int = _RIGHT_PX,
    bottom_px: int = _BOTTOM_PX,
) -> tuple[Figure, Axes]:
    """Return a figure with title and subtitle, and axes inside the margins (in pixels)."""
    figure = style.new_figure(_WIDTH_PX, height_px)
    width, height = _WIDTH_PX - left_px - right_px, height_px - _TOP_PX - bottom_px
    axes = figure.add_axes(
        (left_px / _WIDTH_PX, bottom_px / height_px, width / _WIDTH_PX, height / height_px)
    )
    figure.text(28 / _WIDTH_PX, 1 - 40 / height_px, title, fontsize=19 * style.PX, fontweight="bold")
    figure.text(28 / _WIDTH_PX, 1 - 66 / height_px, subtitle, fontsize=13 * style.PX, color=style.MUTED)
    return figure, axes


def new_bar_chart(
    names: Sequence[str],
    left_px: int,
    title: str,
    subtitle: str,
    right_px: int = _RIGHT_PX,
    bottom_px: int = _BOTTOM_PX,
) -> tuple[Figure, Axes]:
    """Return a frame with one row for each name, the first on top, and images per second along x."""
    height_px = _TOP_PX + bottom_px + _ROW_PX * len(names)
    figure, axes = new_frame(height_px, left_px, title, subtitle, right_px, bottom_px)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.yaxis.set_major_locator(FixedLocator(range(len(names))))
    axes.set_yticklabels(names, color=style.INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("images per second")
    return figure, axes


def draw_bar(axes: Axes, row: int, start: float, end: float, color: str) -> None:
    """Draw the bar of a row from `start` to `end`; the bars of all figures are drawn here."""
    axes.barh(row, end - start, left=start, height=_BAR_HEIGHT, color=color)


def draw_connector(axes: Axes, row: int, x: float) -> None:
    """Draw a thin line at `x` from the bar of the row above to the bar of this row."""
    gap = [row - 1 + _BAR_HEIGHT / 2, row - _BAR_HEIGHT / 2]
    axes.plot([x] * 2, gap, color=style.MUTED, linewidth=0.8)


def draw_label(axes: Axes, row: int, x: float, text: str) -> None:
    """Write a text in a row, beginning at `x`."""
    axes.text(x, row, text, va="center", fontsize=LABEL_PT)


def use_log_x(axes: Axes, **options: float) -> None:
    """Make the x axis logarithmic, without minor ticks; options as of `Axes.set_xscale`."""
    formatter = axes.xaxis.get_major_formatter()
    axes.set_xscale("log", **options)
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_locator(NullLocator())


def hide_x(axes: Axes) -> None:
    """Hide the x axis: bars of different scales are read by their labels, between 0 and 1."""
    axes.set_xlim(0, 1)
    axes.set_xlabel("")
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", labelsize=LABEL_PT, length=0)


def short(value: float) -> str:
    """Return the text of a tick.

    >>> short(2e6), short(500e3), short(20)
    ('2 M', '500 k', '20')
    """
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"
