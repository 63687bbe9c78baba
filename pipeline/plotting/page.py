"""Places text, images and axes on a figure by pixels from its upper left corner."""

from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from pipeline.plotting import style


@dataclass(frozen=True)
class Page:
    """A new figure. Sizes and places are in pixels: x from the left edge, y from the upper edge."""

    width: int
    height: int
    figure: Figure = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "figure", style.new_figure(self.width, self.height))

    def heading(self, margin: float, title: str, subtitle: str, right_margin: float | None = None) -> None:
        """Write a title and one smaller line below it. Both are cut if they reach into the right margin."""
        room = self.width - margin - (margin if right_margin is None else right_margin)
        style.shorten(self.write(margin, 54, style.one_line(title), 26, weight="bold"), room)
        style.shorten(self.write(margin, 84, style.one_line(subtitle), 15, color=style.MUTED), room)

    def write(self, x: float, y: float, text: str, size_px: float, **options: object) -> Text:
        """Write text that starts at x on the baseline y."""
        place = (x / self.width, 1 - y / self.height)
        return self.figure.text(
            *place, text, fontsize=size_px * style.PX, **{"va": "baseline", "ha": "left", **options}
        )

    def fill(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fill a rectangle whose upper left corner is (x, y)."""
        left, bottom, *size = self._box(x, y, width, height)
        self.figure.add_artist(Rectangle((left, bottom), *size, facecolor=color, linewidth=0))

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes whose upper left corner is (x, y)."""
        return self.figure.add_axes(self._box(x, y, width, height))

    def show(self, x: float, y: float, width: float, height: float, image: np.ndarray) -> Axes:
        """Show an image, (H, W, 3) uint8, whose upper left corner is (x, y)."""
        axes = self.axes(x, y, width, height)
        axes.set_axis_off()
        axes.imshow(image, aspect="auto")
        return axes

    def _box(self, x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Return left, bottom, width and height as fractions of the figure, as matplotlib takes them."""
        return (
            x / self.width,
            1 - (y + height) / self.height,
            width / self.width,
            height / self.height,
        )
