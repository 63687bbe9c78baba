"""A sheet of images beside their maps, and the look of one such picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from pipeline.explain.cam import CLASS_AGNOSTIC, Explanations
from pipeline.plotting import style

_COLUMNS = 5  # pairs of pictures in a row of the sheet
_MAX_TILE_PX = 128  # the longer side of one picture
_SEAM_PX, _GUTTER_PX, _MARGIN_PX = 6, 44, 56  # between the two of a pair, between pairs, around all
_HEADER_PX, _CAPTION_PX, _FOOTER_PX = 128, 114, 66
_LABEL_PX = 86  # width of the words before a name


@dataclass(frozen=True)
class Explained:
    """N images, what a network says of them, and why: all that a sheet or a report draws.

    Attributes:
        images: (N, H, W, 3) uint8, as they look (not normalised), in the size that the network sees.
        found: maps, probabilities, predicted and explained classes.
        labels: (N,) integer, the true classes; None where nobody knows them.
        sources: what each image is, such as `test 17` or the name of a file.
        class_names: in label order, in any script.
        layer: name of the layer that the maps are drawn from.
        method: how they are drawn, a key of `METHODS`.
        target: `predicted`, `true`, or the index of the one class that is explained.
    """

    images: np.ndarray
    found: Explanations
    labels: np.ndarray | None
    sources: tuple[str, ...]
    class_names: tuple[str, ...]
    layer: str
    method: str
    target: str | int

    def __post_init__(self) -> None:
        num_images, height, width = self.images.shape[:3]
        assert num_images > 0 and self.images.shape[3:] == (3,) and self.images.dtype == np.uint8, (
            f"{self.images.shape} {self.images.dtype}"
        )
        assert self.found.maps.shape == (num_images, height, width), self.found.maps.shape
        assert len(self.sources) == num_images and (self.labels is None or len(self.labels) == num_images)

    def __len__(self) -> int:
        return len(self.images)

    def overlays(self, side_px: int) -> np.ndarray:
        """(N, h, w, 3) uint8: each image in grey under its map, the longer side SIDE_PX pixels long."""
        return np.stack(
            [
                style.overlay(image, evidence, side_px)
                for image, evidence in zip(self.images, self.found.maps, strict=True)
            ]
        )


def draw_contact_sheet(path: str | Path, explained: Explained, title: str = "", subtitle: str = "") -> None:
    """Draw each image beside its map into one PNG of about 1600 pixels width, five pairs in a row, with true and predicted class.

    Args:
        path: the PNG; replaced if it is there.
        explained: images and maps. Names are cut where they are too long for the column.
        title: the headline, such as the name of the run; without it and the subtitle the images begin at the top.
        subtitle: one smaller line under it: accuracy, architecture, target layer, method.
    """
    num_images, height, width = explained.images.shape[:3]
    zoom = _MAX_TILE_PX / max(height, width)
    zoom = float(int(zoom)) if zoom >= 3 else zoom  # small pixels are shown whole
    tile_w, tile_h = round(width * zoom), round(height * zoom)
    pair_w = 2 * tile_w + _SEAM_PX
    sheet_w = 2 * _MARGIN_PX + _COLUMNS * pair_w + (_COLUMNS - 1) * _GUTTER_PX
    header = _HEADER_PX if title or subtitle else _MARGIN_PX
    sheet_h = header + -(-num_images // _COLUMNS) * (tile_h + _CAPTION_PX) + _FOOTER_PX
    names, sources = _one_line(explained.class_names), _one_line(explained.sources)
    title, subtitle = style.one_line(title), style.one_line(subtitle)
    overlays = explained.overlays(max(tile_w, tile_h))
    with style.drawing([*names, *sources, title, subtitle]):
        page = _Page(style.new_figure(sheet_w, sheet_h), sheet_w, sheet_h)
        text_w = sheet_w - 2 * _MARGIN_PX
        style.shorten(page.write(_MARGIN_PX, 54, title, 26, weight="bold"), text_w)
        style.shorten(page.write(_MARGIN_PX, 84, subtitle, 15, color=style.MUTED), text_w)
        for i in range(num_images):
            row, column = divmod(i, _COLUMNS)
            x, y = _MARGIN_PX + column * (pair_w + _GUTTER_PX), header + row * (tile_h + _CAPTION_PX)
            page.show(x, y, tile_w, tile_h, explained.images[i])
            page.show(
                x + tile_w + _SEAM_PX, y, tile_w, tile_h, overlays[i], empty=not explained.found.maps[i].any()
            )
            _caption(page, x, y + tile_h, pair_w, explained, i, names, sources[i])
        _legend(page, sheet_h - _FOOTER_PX + 22, explained, names)
        style.save_png(page.figure, Path(path))


def _one_line(texts: Sequence[str]) -> list[str]:
    return [style.one_line(text) for text in texts]


@dataclass(frozen=True)
class _Page:
    """A figure addressed in pixels from its upper left corner."""

    figure: Figure
    width: int
    height: int

    def write(self, x: float, y: float, text: str, size_px: float, **style_of_text) -> Text:
        """Text that starts at x on the baseline y."""
        options = {"va": "baseline", "ha": "left", **style_of_text}
        return self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size_px * style.PX, **options
        )

    def fill(self, x: float, y: float, width: float, height: float, color: str) -> None:
        corner = (x / self.width, 1 - (y + height) / self.height)
        self.figure.add_artist(
            Rectangle(corner, width / self.width, height / self.height, facecolor=color, linewidth=0)
        )

    def show(
        self, x: float, y: float, width: float, height: float, image: np.ndarray, *, empty: bool = False
    ) -> None:
        """An image (H, W, 3) uint8; an empty map says so."""
        axes = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        axes.set_axis_off()
        axes.imshow(image, aspect="auto")
        if empty:
            box = {"facecolor": style.PAPER, "alpha": 0.85, "linewidth": 0, "boxstyle": "round,pad=0.4"}
            axes.text(
                0.5,
                0.5,
                "nothing\nstands out",
                ha="center",
                va="center",
                transform=axes.transAxes,
                fontsize=13 * style.PX,
                bbox=box,
            )


def _caption(
    page: _Page, x: float, y: float, width: float, explained: Explained, i: int, names: list[str], source: str
) -> None:
    """True class, predicted class, and which image it is, or the class that the map is about where it is neither of the two."""
    found, labels = explained.found, explained.labels
    predicted, explained_class = int(found.predicted[i]), int(found.classes[i])
    true = None if labels is None else int(labels[i])
    colour, mark = (
        (style.INK, "")
        if true is None
        else (style.BLUE, " ✓")
        if true == predicted
        else (style.VERMILLION, " ✗")
    )
    page.fill(x, y + 4, width, 3, colour)

    def row(
        baseline: float,
        label: str,
        name: str,
        share: str = "",
        color: str = style.INK,
        weight: str = "normal",
    ) -> None:
        page.write(x, y + baseline, label, 14, color=style.MUTED)
        end = width
        if share:
            written = page.write(x + width, y + baseline, share, 14, color=color, weight=weight, ha="right")
            end -= written.get_window_extent().width + 10
        style.shorten(
            page.write(x + _LABEL_PX, y + baseline, name, 14, color=color, weight=weight), end - _LABEL_PX
        )

    def percent(label: int) -> str:
        return style.percent(float(found.probabilities[i, label]))

    if true is None:
        row(29, "image", source)
    else:
        row(29, "true", names[true], percent(true))
    row(51, "predicted", names[predicted], percent(predicted) + mark, colour, "bold")
    if isinstance(explained.target, int):
        row(73, "explained", names[explained_class], percent(explained_class))
    elif true is not None:
        row(73, "image", source, color=style.MUTED)


def _legend(page: _Page, y: float, explained: Explained, names: list[str]) -> None:
    about = {"predicted": "the predicted class", "true": "the true class"}.get(str(explained.target))
    what = f"Evidence for {about or names[int(explained.target)]}"
    if explained.method in CLASS_AGNOSTIC:
        what = "Activity in the layer"
    bar_w, bar_h, gap = 160, 14, 12
    words = page.write(_MARGIN_PX, y, what, 14, color=style.MUTED)
    style.shorten(words, page.width / 3)
    words = page.write(words.get_window_extent().x1, y, ":  none", 14, color=style.MUTED)
    x = words.get_window_extent().x1 + gap
    ramp = np.linspace(0, 1, bar_w, dtype=np.float32)[None]
    page.show(
        x, y - bar_h + 1, bar_w, bar_h, style.overlay(np.full((1, bar_w, 3), 150, np.uint8), ramp, bar_w)
    )
    page.write(x + bar_w + gap, y, "strongest in this image", 14, color=style.MUTED)
    if explained.labels is None:
        return
    right_edge, right = page.width - _MARGIN_PX, explained.labels == explained.found.predicted
    for there, meaning, colour in (
        (right.any(), "✓ correct", style.BLUE),
        (not right.all(), "✗ mistake", style.VERMILLION),
    ):
        if there:
            words = page.write(right_edge, y, meaning, 14, color=colour, weight="bold", ha="right")
            right_edge = words.get_window_extent().x0 - 24
