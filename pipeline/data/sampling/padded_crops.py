"""Draws crop, flip, jitter and Cutout box of images in memory, for a whole epoch at once.

A crop has the size of the image, and is taken from the image with a border. Drawing is separate from
applying: every loader applies the same draws.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.config import AugmentConfig
from pipeline.data.sampling.philox import (
    PADDED_CROPS,
    below,
    draw_order,
    flips,
    philox_at,
    philox_blocks,
    signed,
)


@dataclass(frozen=True)
class PaddedCropDraws:
    """The draws of one epoch for N samples, all but `order` indexed by sample id.

    A crop is taken from the padded image at (crop_y, crop_x), then flipped horizontally if `flip`, then
    brightness and contrast of the normalised image change, then the Cutout box is filled.

    Attributes:
        order: (N,) int64, a permutation: the sample ids in the order of the epoch.
        crop_y, crop_x: (N,) int32 in [0, 2 * padding].
        flip: (N,) bool.
        cutout_y, cutout_x: (N,) int32, the top left corner of the box in the output. With
            `augment.cutout_mode: clipped`, part of the box can be outside of the image.
        jitter: (N, 2) int32, uniform over all values: the changes of brightness and of contrast, in units of
            `augment.brightness` / 2**31 and `augment.contrast` / 2**31. (N, 0) if both keys are 0.
    """

    order: np.ndarray
    crop_y: np.ndarray
    crop_x: np.ndarray
    flip: np.ndarray
    cutout_y: np.ndarray
    cutout_x: np.ndarray
    jitter: np.ndarray

    def table(self) -> np.ndarray:
        """Return crop_y, crop_x, flip, cutout_y, cutout_x and jitter by sample id: (N, 5) or (N, 7) int32."""
        columns = [self.crop_y, self.crop_x, self.flip.astype(np.int32), self.cutout_y, self.cutout_x]
        return np.concatenate([np.stack(columns, axis=1), self.jitter], axis=1)


def draw_padded_crops(
    seed: int, epoch: int, num_samples: int, image_size: tuple[int, int], augment: AugmentConfig
) -> PaddedCropDraws:
    """Draw order, crops, flips, jitter and Cutout boxes of one epoch.

    Cutout follows DeVries & Taylor 2017 (arXiv:1708.04552), section 3.1: the centre is uniform over the
    pixels, and the box is clipped by the border (`clipped`). `inside` draws the corner so that the whole box
    is in the image.

    Args:
        seed: the run's seed.
        epoch: 0 for the first.
        num_samples: N, samples in the training set.
        image_size: height and width of the output, in pixels.
        augment: what is switched on. What is off gets its neutral value (centre crop, no flip, box at 0).
            Jitter that is off has no columns.
    """
    words = philox_blocks(seed, epoch, PADDED_CROPS, num_samples)

    def first_bits() -> np.ndarray:
        return philox_blocks(seed, 0, PADDED_CROPS, num_samples)[:, 1]

    mirrored = flips(augment.flip, epoch, words[:, 1], first_bits)
    return _draw(draw_order(seed, epoch, num_samples), words, mirrored, image_size, augment)


def draw_padded_crops_of(
    seed: int, samples: np.ndarray, showings: np.ndarray, image_size: tuple[int, int], augment: AugmentConfig
) -> PaddedCropDraws:
    """Draw the same for some samples, each in an epoch of its own.

    Args:
        seed, image_size, augment: as for `draw_padded_crops`.
        samples: (B,) int64 sample ids. They are `order` in the result, and all else is in their order.
        showings: (B,) int64, the epoch of each sample.
    """
    words = philox_at(seed, showings, PADDED_CROPS, samples)

    def first_bits() -> np.ndarray:
        return philox_at(seed, np.zeros_like(showings), PADDED_CROPS, samples)[:, 1]

    mirrored = flips(augment.flip, showings, words[:, 1], first_bits)
    return _draw(samples, words, mirrored, image_size, augment)


def _draw(
    order: np.ndarray,
    words: np.ndarray,
    mirrored: np.ndarray,
    image_size: tuple[int, int],
    augment: AugmentConfig,
) -> PaddedCropDraws:
    """Turn the (N, 4) random words of N samples into draws."""
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    num_offsets = 2 * augment.crop_padding + 1
    box, (height, width) = augment.cutout, image_size

    def corner(bits: np.ndarray, extent: int) -> np.ndarray:
        if not box:
            return np.zeros(len(words), np.int32)
        if augment.cutout_mode == "inside":
            return below(bits, extent - box + 1)
        return below(bits, extent) - np.int32(box // 2)

    return PaddedCropDraws(
        order=order,
        crop_y=below(high[:, 0], num_offsets),
        crop_x=below(low[:, 0], num_offsets),
        flip=mirrored,
        cutout_y=corner(high[:, 2], height),
        cutout_x=corner(low[:, 2], width),
        jitter=signed(np.stack([high[:, 3], low[:, 3]], axis=1)[:, : 2 * augment.jitters]),
    )
