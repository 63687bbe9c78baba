"""Draws the crops of streamed images: random resized crops in training, the centre in evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from einops import rearrange

from pipeline.config import AugmentConfig
from pipeline.data.sampling.philox import RESIZED_CROPS, below, draw_order, flips, philox_at, philox_blocks

_TRIES = 10
_BLOCKS = 3  # Philox blocks of a sample: 24 draws of 32 bits, 20 of them for the tries
_CHUNK = 2**16  # samples at a time, so that temporary arrays stay small


@dataclass(frozen=True)
class ResizedCropDraws:
    """The draws of one epoch for N streamed images, all but `order` indexed by sample id.

    The crop is cut out of the image, resized to the size of the batch, flipped horizontally if `flip`, and
    then the Cutout box is filled.

    Attributes:
        order: (N,) int64, a permutation: the sample ids in the order of the epoch.
        boxes: (N, 4) int32, the crop: top, left, height, width in pixels of the upright image.
        flip: (N,) bool.
        cutout: (N, 2) uint32, position of the Cutout box as a fraction of 2**32: the output size is not known
            here.
    """

    order: np.ndarray
    boxes: np.ndarray
    flip: np.ndarray
    cutout: np.ndarray


def draw_resized_crops(seed: int, epoch: int, sizes: np.ndarray, augment: AugmentConfig) -> ResizedCropDraws:
    """Draw order, crops, flips and positions of the Cutout boxes of one epoch.

    A crop follows torchvision's `RandomResizedCrop` (Szegedy et al. 2014, arXiv:1409.4842, section 6). Its
    area is uniform in `augment.crop_scale`, its ratio of width to height log-uniform in `augment.crop_ratio`.
    Ten tries are made to find a crop inside the image. If none fits, the crop is the largest centred one
    whose ratio is in range.

    Args:
        seed: the run's seed.
        epoch: 0 for the first.
        sizes: (N, 2) int32, height and width of each image.
        augment: what is switched on.
    """
    boxes, mirrored, positions = [], [], []
    for start in range(0, len(sizes), _CHUNK):
        chunk = sizes[start : start + _CHUNK]
        draws = _uniform_bits(seed, epoch, start, len(chunk))
        boxes.append(_boxes_of(draws, chunk, augment))
        first_bits = partial(_flip_bits, seed, start, len(chunk))
        mirrored.append(flips(augment.flip, epoch, draws[:, 2 * _TRIES], first_bits))
        positions.append(draws[:, 2 * _TRIES + 2 :])
    order = draw_order(seed, epoch, len(sizes))
    return ResizedCropDraws(order, *(np.concatenate(parts) for parts in (boxes, mirrored, positions)))


def draw_resized_crops_of(
    seed: int, samples: np.ndarray, showings: np.ndarray, sizes: np.ndarray, augment: AugmentConfig
) -> ResizedCropDraws:
    """Draw the same for some samples, each in an epoch of its own.

    Args:
        seed, augment: as for `draw_resized_crops`.
        samples: (B,) int64 sample ids. They are `order` in the result, and all else is in their order.
        showings: (B,) int64, the epoch of each sample.
        sizes: (B, 2) int32, height and width of the images of these samples.
    """
    draws = _uniform_bits_of(seed, samples, showings)

    def first_bits() -> np.ndarray:
        return _uniform_bits_of(seed, samples, np.zeros_like(showings))[:, 2 * _TRIES]

    mirrored = flips(augment.flip, showings, draws[:, 2 * _TRIES], first_bits)
    return ResizedCropDraws(samples, _boxes_of(draws, sizes, augment), mirrored, draws[:, 2 * _TRIES + 2 :])


def _boxes_of(draws: np.ndarray, sizes: np.ndarray, augment: AugmentConfig) -> np.ndarray:
    """Turn the random bits of N samples, (N, 24) uint32, into the boxes of their crops: (N, 4) int32."""
    tries, corner_bits = draws[:, : 2 * _TRIES], draws[:, 2 * _TRIES :].astype(np.uint64)
    extents = _draw_extents(tries, sizes, augment)
    # `below` uses the high bits of the first number, the flip its lowest bit
    corners = np.stack(
        [below(corner_bits[:, axis], sizes[:, axis] - extents[:, axis] + 1) for axis in (0, 1)], axis=1
    )
    # negative extents mark the images in which no try fits: the largest centred crop
    centred = extents[:, 0] < 0
    extents[centred] *= -1
    corners[centred] = (sizes[centred] - extents[centred]) // 2
    return np.concatenate([corners, extents], axis=1)


def _uniform_bits_of(seed: int, samples: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Return the random bits of some samples, each in its epoch: (B, 8 * _BLOCKS) uint32."""
    blocks = samples[:, None] * _BLOCKS + np.arange(_BLOCKS)
    words = philox_at(
        seed, np.broadcast_to(epochs[:, None], blocks.shape).ravel(), RESIZED_CROPS, blocks.ravel()
    )
    return rearrange(words.view(np.uint32), "(n blocks) halves -> n (blocks halves)", blocks=_BLOCKS)


def _uniform_bits(seed: int, epoch: int, start: int, count: int) -> np.ndarray:
    """Return the random bits of COUNT samples from START on: (count, 8 * _BLOCKS) uint32."""
    words = philox_blocks(seed, epoch, RESIZED_CROPS, count * _BLOCKS, start * _BLOCKS)
    return rearrange(words.view(np.uint32), "(n blocks) halves -> n (blocks halves)", blocks=_BLOCKS)


def _flip_bits(seed: int, start: int, count: int) -> np.ndarray:
    """Return the bits of which the lowest one is the flip in epoch 0: (count,) uint32."""
    return _uniform_bits(seed, 0, start, count)[:, 2 * _TRIES]


def _draw_extents(tries: np.ndarray, sizes: np.ndarray, augment: AugmentConfig) -> np.ndarray:
    """Draw height and width of the crops: (N, 2) int32, negative if no try fits.

    Args:
        tries: (N, 20) uint32, pairs of draws: of the area, and of the ratio.
        sizes: (N, 2) int32.
    """
    (low, high), ratios = augment.crop_scale, augment.crop_ratio
    log_low, log_high = np.log(ratios)
    extents = -_largest_centred(sizes, ratios)
    open_rows = np.arange(len(sizes))
    for number in range(_TRIES):
        uniform = tries[open_rows, 2 * number : 2 * number + 2] / 2.0**32
        height, width = sizes[open_rows].T.astype(np.float64)
        area = height * width * (low + (high - low) * uniform[:, 0])
        ratio = np.exp(log_low + (log_high - log_low) * uniform[:, 1])
        box = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=1))).astype(np.int32)
        fits = (box > 0).all(axis=1) & (box <= sizes[open_rows]).all(axis=1)
        extents[open_rows[fits]] = box[fits]
        open_rows = open_rows[~fits]
        if not len(open_rows):
            break
    return extents


def _largest_centred(sizes: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Return height and width of the whole image, reduced if its ratio is out of range: (N, 2) int32."""
    height, width = sizes[:, 0], sizes[:, 1]
    box_height = np.minimum(height, np.rint(width / ratios[0]).astype(np.int32))
    box_width = np.minimum(width, np.rint(height * ratios[1]).astype(np.int32))
    return np.maximum(np.stack([box_height, box_width], axis=1), 1).astype(np.int32)


@dataclass(frozen=True)
class CentreView:
    """The resize and crop of evaluation: torchvision's `Resize` of the shorter side, then `CenterCrop`.

    Attributes:
        size: height and width of the result, in pixels.
        share: fraction of the resized shorter side that the crop keeps (224 of 256: 0.875).
    """

    size: int
    share: float

    @property
    def resized(self) -> int:
        """Return the shorter side of the resized image, in pixels."""
        return max(round(self.size / self.share), self.size)

    def boxes(self, sizes: np.ndarray) -> np.ndarray:
        """Return the part of each image to resize, so that resize and crop are one operation.

        Args:
            sizes: (N, 2) int32, height and width of each image.

        Returns:
            (N, 4) float32 top, left, bottom, right in pixels of the image.
        """
        wide = sizes.astype(np.int64)
        shorter = wide.min(axis=1, keepdims=True)
        resized = wide * self.resized // shorter
        start = np.rint((resized - self.size) / 2)
        scale = wide / resized
        return np.concatenate([start * scale, (start + self.size) * scale], axis=1).astype(np.float32)
