"""The frame that the figures made from records have in common: size, margins, title and subtitle."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.plotting import style

_WIDTH_PX = 1100
_TOP_PX, _BOTTOM_PX, _RIGHT_PX = 110, 74, 210
MARGINS_PX = _TOP_PX + _BOTTOM_PX


def new_frame(
    height_px: int, left_px: int, title: str, subtitle: str, right_px: int = _RIGHT_PX
) -> tuple[Figure, Axes]:
    """A figure with axes inside these margins, in pixels."""
    figure = style.new_figure(_WIDTH_PX, height_px)
    box = (left_px, _BOTTOM_PX, _WIDTH_PX - left_px - right_px, height_px - MARGINS_PX)
    axes = figure.add_axes((box[0] / _WIDTH_PX, box[1] / height_px, box[2] / _WIDTH_PX, box[3] / height_px))
    figure.text(28 / _WIDTH_PX, 1 - 40 / height_px, title, fontsize=19 * style.PX, fontweight="bold")
    figure.text(28 / _WIDTH_PX, 1 - 66 / height_px, subtitle, fontsize=13 * style.PX, color=style.MUTED)
    return figure, axes
