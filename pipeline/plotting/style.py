"""Holds the look of every picture: palette, type, and PNGs drawn without pyplot's global state.

Sizes are pixels: a figure of `new_figure` has 100 pixels per inch, and `PX` turns pixels into matplotlib's
points.
"""

import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

# Colours that stay apart for colour-blind readers: Okabe and Ito, "Color Universal Design" (2008).
BLUE = "#0072B2"
VERMILLION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#A3447A"
INK = "#1F2933"
MUTED = "#66717E"
GRID = "#E4E7EB"
PAPER = "#FFFFFF"

# A saliency map on a grey picture, from 0 (transparent) to 1 (red). Its colours grow darker and more opaque,
# so that readers need not see the hue.
SALIENCY = ((1.0, 0.93, 0.6, 0.0), (1.0, 0.8, 0.3, 0.45), (0.96, 0.45, 0.1, 0.7), (0.7, 0.02, 0.1, 0.85))
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue, ITU-R BT.601
# the values that are drawn black and white: the grey picture has a little less contrast than the image
GREY_RANGE = (-60, 275)

DPI = 100
PX = 72 / DPI  # points in one pixel

_FONT = "DejaVu Sans"  # comes with matplotlib
_LAST_RESORT = "Last Resort"  # maps every character to a box

_RC: dict[Any, object] = {
    "font.family": [_FONT],
    "text.usetex": False,
    "text.parse_math": False,  # names of classes and runs may hold a dollar sign
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 15 * PX,
    "axes.titlepad": 12 * PX,
    "axes.labelsize": 13 * PX,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "grid.linestyle": "-",
    "lines.solid_capstyle": "round",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 13 * PX,
    "ytick.labelsize": 13 * PX,
    "ytick.major.size": 0,
    "image.origin": "upper",
    "savefig.bbox": None,
    "savefig.dpi": "figure",
    "savefig.facecolor": "auto",
    "savefig.transparent": False,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
}


@contextmanager
def drawing(texts: Iterable[str] = ()) -> Iterator[None]:
    """Set the project's style for what is drawn inside, and restore matplotlib's settings afterwards.

    Args:
        texts: the texts to write. The installed fonts are searched for characters that the usual font lacks;
            a character that no font has is drawn as a box.
    """
    with matplotlib.rc_context({**_RC, "font.family": _families(texts)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(width_px: int, height_px: int) -> Figure:
    """Return an empty figure on the Agg canvas, which no global registry knows."""
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all: it is written beside `path`, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            figure.savefig(file, format="png")
            file.flush()
            os.fsync(file.fileno())  # after a power cut, a name without its content would pass for a picture
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def overlay(image: np.ndarray, saliency: np.ndarray, side_px: int) -> np.ndarray:
    """Return a saliency map over its image in grey; the longer side has about SIDE_PX pixels.

    Args:
        image: (H, W, 3) uint8.
        saliency: (H, W) in [0, 1].

    Returns:
        (h, w, 3) uint8.
    """
    zoom = side_px / max(image.shape[:2])
    size = (max(round(image.shape[1] * zoom), 1), max(round(image.shape[0] * zoom), 1))
    low, high = GREY_RANGE
    luma = np.clip((image @ np.array(LUMA) - low) / (high - low), 0, 1)
    # the pixels of a small image stay visible as squares
    filter_of_image = Image.Resampling.NEAREST if zoom >= 3 else Image.Resampling.BICUBIC
    grey = np.asarray(Image.fromarray((255 * luma).astype(np.uint8)).resize(size, filter_of_image)) / 255.0
    scaled = Image.fromarray(saliency.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    colours = LinearSegmentedColormap.from_list("saliency", SALIENCY)(np.asarray(scaled))
    mixed = colours[..., 3:] * colours[..., :3] + (1 - colours[..., 3:]) * grey[..., None]
    return np.round(255 * mixed).astype(np.uint8)


def one_line(text: str) -> str:
    r"""Return text without control characters and line breaks, and bytes of file names that are not UTF-8 as
    `\xe9`."""
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", text)  # which stand for no byte
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return " ".join("".join(" " if unicodedata.category(c) == "Cc" else c for c in text).split())


def shorten(text: Text, width_px: float) -> None:
    """Cut the end of a one-line text, marked by an ellipsis, until it is at most `width_px` pixels wide."""
    whole = text.get_text()

    def cut(length: int) -> str:
        return whole if length == len(whole) else whole[:length].rstrip() + "…"

    fits, too_long = 0, len(whole) + 1
    while too_long - fits > 1:  # bisection over the number of characters
        length = (fits + too_long) // 2
        text.set_text(cut(length))
        fits, too_long = (length, too_long) if text.get_window_extent().width <= width_px else (fits, length)
    text.set_text(cut(fits))


def percent(fraction: float) -> str:
    """Write a fraction as whole per cent; one near 0 or 1 is not rounded to 0 % or 100 %."""
    if 0.995 < fraction < 1:
        return ">99 %"
    if 0 < fraction < 0.005:
        return "<1 %"
    return f"{fraction:.0%}".replace("%", " %")


def _families(texts: Iterable[str]) -> list[str]:
    """Return the usual font and, if it lacks characters, the first installed font that has them all."""
    characters = {ord(c) for text in texts for c in text if not c.isspace()}
    missing = characters - _charmap(font_manager.findfont(_FONT))
    if not missing:
        return [_FONT]
    regular = {
        entry.name: entry.fname
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and _LAST_RESORT not in entry.name
    }
    return [_FONT, *next(([name] for name, path in sorted(regular.items()) if missing <= _charmap(path)), [])]


def _charmap(path: str) -> set[int]:
    try:
        return set(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # the list of fonts is cached: a font may be gone, or be unreadable
        return set()
