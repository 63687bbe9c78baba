"""Applies the operations of TrivialAugment to one image with torchvision: the reference for DALI's."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from pipeline.data.sampling.trivial_augment import OPERATIONS, strengths_of


def apply_trivial_augment(image: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Apply the drawn operation.

    Args:
        image: (3, H, W) uint8.
        draws: (2,) int32, a row of `draw_trivial_augment`.
    """
    (strength,) = strengths_of(draws[None]).tolist()
    return _APPLY[OPERATIONS[draws[0]]](image, strength)


def _move(
    image: torch.Tensor, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)
) -> torch.Tensor:
    """Shift by pixels, or shear by slopes from the upper left corner."""
    degrees = [math.degrees(math.atan(slope)) for slope in shear]
    centre = [0.0, 0.0] if any(shear) else None
    bilinear = InterpolationMode.BILINEAR
    return F.affine(image, 0.0, list(shift), 1.0, degrees, interpolation=bilinear, center=centre)


def _equalize(image: torch.Tensor, _: float) -> torch.Tensor:
    """Equalise the histogram of each channel: a pixel becomes the fraction of pixels that are darker.

    Pixels of the brightest value are not counted. This is the definition of Pillow and torchvision, which
    divide by whole numbers; the difference is at most three grey levels for images of 176 pixels, and more
    for small images. OpenCV's and DALI's own definition counts pixels up to the same brightness: it is this
    one for the negative of an image.
    """
    return 255 - equalize_as_opencv(255 - image)


def equalize_as_opencv(image: torch.Tensor) -> torch.Tensor:
    """Return a (3, H, W) uint8 image as OpenCV's `equalizeHist` does, channel by channel."""
    channels = []
    for channel in image.numpy():
        counts = np.bincount(channel.ravel(), minlength=256)
        counts[channel.min()] = 0  # the darkest value becomes 0
        brighter = counts.sum()
        scale = np.float32(255 / brighter) if brighter else np.float32(0)
        table = np.rint(counts.cumsum().astype(np.float32) * scale).clip(0, 255).astype(np.uint8)
        channels.append(table[channel] if brighter else channel)
    return torch.from_numpy(np.stack(channels))


_APPLY: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "identity": lambda image, _: image,
    "shear_x": lambda image, slope: _move(image, shear=(slope, 0.0)),
    "shear_y": lambda image, slope: _move(image, shear=(0.0, slope)),
    "translate_x": lambda image, pixels: _move(image, (int(pixels), 0)),
    "translate_y": lambda image, pixels: _move(image, (0, int(pixels))),
    "rotate": lambda image, angle: F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR),
    "brightness": lambda image, change: F.adjust_brightness(image, 1 + change),
    "color": lambda image, change: F.adjust_saturation(image, 1 + change),
    "contrast": lambda image, change: F.adjust_contrast(image, 1 + change),
    "sharpness": lambda image, change: F.adjust_sharpness(image, 1 + change),
    "posterize": lambda image, bits: F.posterize(image, int(bits)),
    "solarize": lambda image, threshold: F.solarize(image, threshold),
    "auto_contrast": lambda image, _: F.autocontrast(image),
    "equalize": _equalize,
}
