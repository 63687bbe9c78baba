"""Draws a contact sheet: images beside their saliency maps, with true and predicted class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.datasets.image_set import check_pixels
from pipeline.errors import UserError, first_line
from pipeline.explain.cam import CLASS_AGNOSTIC, Explanations, check_method
from pipeline.plotting import style
from pipeline.plotting.page import Page

_COLUMNS = 5  # pairs of pictures in a row of the sheet
_MAX_TILE_PX = 128  # the longer side of one picture
_SEAM_PX, _GUTTER_PX, _MARGIN_PX = 6, 44, 56  # inside a pair, between pairs, around all
_HEADER_PX, _CAPTION_PX, _FOOTER_PX = 128, 114, 66
_LABEL_PX = 86  # width of the word before a name


@dataclass(frozen=True)
class Explained:
    """N images with the predictions of a network and its saliency maps: all that a sheet or a report draws.

    Attributes:
        images: (N, H, W, 3) uint8, as they look (not normalised), in the size that the network takes.
        found: maps, probabilities, predicted and explained classes.
        labels: (N,) integer, the true classes; None if they are not known.
        sources: names the images, such as `test 17` or a file name.
        class_names: in label order, in any script.
        layer: name of the layer that the maps come from.
        method: a key of `METHODS`.
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
        """Check that the parts fit together.

        Raises:
            UserError: names the part that does not.
        """
        check_pixels(self.images)
        count, found, num_classes = len(self.images), self.found, len(self.class_names)
        if not count:
            raise UserError("images: there are none; give one or more")
        if found.maps.shape != self.images.shape[:3]:
            raise UserError(
                f"found: maps {found.maps.shape} for images {self.images.shape}; give one for each"
            )
        for name, values in (("sources", self.sources), ("labels", self.labels)):
            if values is not None and len(values) != count:
                raise UserError(f"{name}: {len(values)} for {count} images; give one for each")
        indices = [found.predicted, found.classes, *([] if self.labels is None else [self.labels])]
        wrong = [index for values in indices for index in values if not 0 <= index < num_classes]
        if wrong:
            raise UserError(f"class_names: {num_classes} names, and none for class {wrong[0]}; give them all")
        check_method(self.method)

    def __len__(self) -> int:
        return len(self.images)

    def overlays(self, side_px: int) -> np.ndarray:
        """Return (N, h, w, 3) uint8: each image in grey under its map; the longer side has SIDE_PX pixels."""
        pairs = zip(self.images, self.found.maps, strict=True)
        return np.stack([style.overlay(image, saliency, side_px) for image, saliency in pairs])


def draw_contact_sheet(path: str | Path, explained: Explained, title: str = "", subtitle: str = "") -> None:
    """Draw each image beside its map into one PNG of about 1600 pixels width, five pairs in a row.

    Args:
        path: the PNG; replaced if it is there.
        explained: images and maps. Names are cut where they are too long for the column.
        title: the headline, such as the name of the run. Without title and subtitle the images begin at the
            top.
        subtitle: one smaller line under the title: accuracy, architecture, target layer, method.

    Raises:
        OSError: the file cannot be written.
    """
    names = [style.one_line(name) for name in explained.class_names]
    sources = [style.one_line(source) for source in explained.sources]
    with style.drawing([*names, *sources, style.one_line(title), style.one_line(subtitle)]):
        sheet = _Sheet.of(explained, names, sources, _HEADER_PX if title or subtitle else _MARGIN_PX)
        sheet.page.heading(_MARGIN_PX, title, subtitle)
        overlays = explained.overlays(max(sheet.tile))
        for i in range(len(explained)):
            sheet.draw_pair(i, overlays[i])
        sheet.draw_legend()
        style.save_png(sheet.page.figure, Path(path))


@contextmanager
def naming_picture(path: str | Path) -> Iterator[None]:
    """Turn the errors of writing a picture inside into a UserError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: an empty path, or one with a null character
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path}: cannot be written ({reason}); choose another place with --output") from None


@dataclass(frozen=True)
class _Sheet:
    """The page of a contact sheet.

    Attributes:
        names, sources: of the classes and the images, each on one line.
        header: pixels above the first row.
        tile: width and height of one picture.
    """

    page: Page
    explained: Explained
    names: Sequence[str]
    sources: Sequence[str]
    header: int
    tile: tuple[int, int]

    @classmethod
    def of(cls, explained: Explained, names: Sequence[str], sources: Sequence[str], header: int) -> "_Sheet":
        height, width = explained.images.shape[1:3]
        zoom = _MAX_TILE_PX / max(height, width)
        zoom = float(int(zoom)) if zoom >= 3 else zoom  # the pixels of a small image keep one size
        tile = round(width * zoom), round(height * zoom)
        sheet_w = 2 * _MARGIN_PX + _COLUMNS * _pair_width(tile) + (_COLUMNS - 1) * _GUTTER_PX
        rows = -(-len(explained) // _COLUMNS)
        sheet_h = header + rows * (tile[1] + _CAPTION_PX) + _FOOTER_PX
        return cls(Page(sheet_w, sheet_h), explained, names, sources, header, tile)

    def draw_pair(self, i: int, overlay: np.ndarray) -> None:
        """Draw image number I, its map and its caption."""
        (row, column), (tile_w, tile_h) = divmod(i, _COLUMNS), self.tile
        x = _MARGIN_PX + column * (_pair_width(self.tile) + _GUTTER_PX)
        y = self.header + row * (tile_h + _CAPTION_PX)
        self.page.show(x, y, tile_w, tile_h, self.explained.images[i])
        axes = self.page.show(x + tile_w + _SEAM_PX, y, tile_w, tile_h, overlay)
        if not self.explained.found.maps[i].any():
            box = {"facecolor": style.PAPER, "alpha": 0.85, "linewidth": 0, "boxstyle": "round,pad=0.4"}
            centred = {"ha": "center", "va": "center", "transform": axes.transAxes}
            axes.text(0.5, 0.5, "nothing\nstands out", **centred, fontsize=13 * style.PX, bbox=box)
        self._draw_caption(i, _Caption(self.page, x, y + tile_h, _pair_width(self.tile)))

    def _draw_caption(self, i: int, caption: "_Caption") -> None:
        """Write the true and the predicted class, and the image's name or the one explained class."""
        found, labels = self.explained.found, self.explained.labels
        predicted, explained_class = int(found.predicted[i]), int(found.classes[i])
        true = None if labels is None else int(labels[i])
        color, mark = style.INK, ""
        if true is not None:
            color, mark = (style.BLUE, " ✓") if true == predicted else (style.VERMILLION, " ✗")

        def percent(label: int) -> str:
            return style.percent(float(found.probabilities[i, label]))

        caption.bar(color)
        if true is None:
            caption.row(29, "image", self.sources[i])
        else:
            caption.row(29, "true", self.names[true], percent(true))
        caption.row(51, "predicted", self.names[predicted], percent(predicted) + mark, color, "bold")
        if isinstance(self.explained.target, int):
            caption.row(73, "explained", self.names[explained_class], percent(explained_class))
        elif true is not None:
            caption.row(73, "image", self.sources[i], color=style.MUTED)

    def draw_legend(self) -> None:
        """Draw the colours of the maps and, where the true classes are known, the two marks."""
        page, y, target = self.page, self.page.height - _FOOTER_PX + 22, self.explained.target
        named = {"predicted": "the predicted class", "true": "the true class"}.get(str(target))
        text = f"Evidence for {named or self.names[int(target)]}"
        if self.explained.method in CLASS_AGNOSTIC:
            text = "Activity in the layer"
        bar_w, bar_h, gap = 160, 14, 12
        words = page.write(_MARGIN_PX, y, text, 14, color=style.MUTED)
        style.shorten(words, page.width / 3)
        words = page.write(words.get_window_extent().x1, y, ":  none", 14, color=style.MUTED)
        x = words.get_window_extent().x1 + gap
        ramp = np.linspace(0, 1, bar_w, dtype=np.float32)[None]
        bar = style.overlay(np.full((1, bar_w, 3), 150, np.uint8), ramp, bar_w)
        page.show(x, y - bar_h + 1, bar_w, bar_h, bar)
        page.write(x + bar_w + gap, y, "strongest in this image", 14, color=style.MUTED)
        if self.explained.labels is None:
            return
        right_edge, right = page.width - _MARGIN_PX, self.explained.labels == self.explained.found.predicted
        for used, meaning, color in (
            (right.any(), "✓ correct", style.BLUE),
            (not right.all(), "✗ mistake", style.VERMILLION),
        ):
            if used:
                words = page.write(right_edge, y, meaning, 14, color=color, weight="bold", ha="right")
                right_edge = words.get_window_extent().x0 - 24


def _pair_width(tile: tuple[int, int]) -> int:
    return 2 * tile[0] + _SEAM_PX


@dataclass(frozen=True)
class _Caption:
    """The place below a pair of pictures, whose upper left corner is (x, y)."""

    page: Page
    x: float
    y: float
    width: float

    def bar(self, color: str) -> None:
        self.page.fill(self.x, self.y + 4, self.width, 3, color)

    def row(
        self,
        baseline: float,
        label: str,
        name: str,
        share: str = "",
        color: str = style.INK,
        weight: str = "normal",
    ) -> None:
        """Write a label, a name that is cut to the room left, and a number at the right."""
        y, end, look = self.y + baseline, self.width, {"color": color, "weight": weight}
        self.page.write(self.x, y, label, 14, color=style.MUTED)
        if share:
            number = self.page.write(self.x + self.width, y, share, 14, ha="right", **look)
            end -= number.get_window_extent().width + 10
        style.shorten(self.page.write(self.x + _LABEL_PX, y, name, 14, **look), end - _LABEL_PX)
