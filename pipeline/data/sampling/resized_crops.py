"""Which part of a streamed image is shown: random resized crops in training, the centre in evaluation. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from pipeline.config import AugmentConfig
from pipeline.data.sampling.draws import CROPS, below, epoch_order, philox_blocks

_TRIES = 10
_BLOCKS = 3  # Philox blocks of a sample: 24 draws of 32 bits, of which 20 for the tries
_CHUNK = 2**16  # samples at a time: the temporaries stay small


@dataclass(frozen=True)
class CropDraws:
    """Draws of one epoch for N streamed images; all but `order` are indexed by sample id.

    The box is cut out of the image, resized to the size of the batch, mirrored where `flip`, and then Cutout's box is filled.

    Attributes:
        order: (N,) int64, a permutation: the sample ids in the order of the epoch.
        boxes: (N, 4) int32 top, left, height, width in pixels of the upright image.
        flip: (N,) bool.
        cutout: (N, 2) uint32, where Cutout's box is, as shares of 2**32: the size of the output is not known here.
    """

    order: np.ndarray
    boxes: np.ndarray
    flip: np.ndarray
    cutout: np.ndarray


def draw_crops(seed: int, epoch: int, sizes: np.ndarray, augment: AugmentConfig) -> CropDraws:
    """Draw order, boxes, flips and Cutout's places of one epoch.

    A box follows torchvision's `RandomResizedCrop` (Szegedy et al. 2014, arXiv:1409.4842, section 6): area uniform in
    `augment.crop_scale`, ratio of width to height log-uniform in `augment.crop_ratio`, ten tries to find one inside the image, then the
    largest centred box whose ratio is in range.

    Args:
        seed: the run's seed.
        epoch: 0 for the first.
        sizes: (N, 2) int32, height and width of each image.
        augment: what is switched on.
    """
    boxes, flips, places = [], [], []
    for start in range(0, len(sizes), _CHUNK):
        part = sizes[start : start + _CHUNK]
        words = philox_blocks(seed, epoch, CROPS, len(part) * _BLOCKS, start * _BLOCKS)
        halves = rearrange(words.view(np.uint32), "(n blocks) halves -> n (blocks halves)", blocks=_BLOCKS)
        tries, place = halves[:, : 2 * _TRIES], halves[:, 2 * _TRIES :].astype(np.uint64)
        extents = _extents(tries, part, augment)
        corners = np.stack(
            [below(place[:, axis], part[:, axis] - extents[:, axis] + 1) for axis in (0, 1)], axis=1
        )
        # a box that no try has found is centred, with extents marked by their sign
        centred = extents[:, 0] < 0
        extents[centred] *= -1
        corners[centred] = (part[centred] - extents[centred]) // 2
        boxes.append(np.concatenate([corners, extents], axis=1))
        # `below` has looked at the high bits of this number, the flip is its lowest
        flips.append((halves[:, 2 * _TRIES] & 1).astype(bool) & augment.flip)
        places.append(halves[:, 2 * _TRIES + 2 :])
    return CropDraws(
        epoch_order(seed, epoch, len(sizes)), *(np.concatenate(drawn) for drawn in (boxes, flips, places))
    )


def _extents(tries: np.ndarray, sizes: np.ndarray, augment: AugmentConfig) -> np.ndarray:
    """(N, 2) int32 height and width of the boxes; negative where no try fits.

    Args:
        tries: (N, 20) uint32, pairs of draws: of the area, and of the ratio.
        sizes: (N, 2) int32.
    """
    (low, high), ratios = augment.crop_scale, augment.crop_ratio
    log_low, log_high = np.log(ratios)
    extents = -_largest_centred(sizes, ratios)
    left = np.arange(len(sizes))
    for number in range(_TRIES):
        uniform = tries[left, 2 * number : 2 * number + 2] / 2.0**32
        height, width = sizes[left].T.astype(np.float64)
        area = height * width * (low + (high - low) * uniform[:, 0])
        ratio = np.exp(log_low + (log_high - log_low) * uniform[:, 1])
        box = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=1))).astype(np.int32)
        fits = (box > 0).all(axis=1) & (box <= sizes[left]).all(axis=1)
        extents[left[fits]] = box[fits]
        left = left[~fits]
        if not len(left):
            break
    return extents


def _largest_centred(sizes: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """(N, 2) int32: the whole image, cut where its ratio of width to height is out of range."""
    height, width = sizes[:, 0], sizes[:, 1]
    box_height = np.minimum(height, np.rint(width / ratios[0]).astype(np.int32))
    box_width = np.minimum(width, np.rint(height * ratios[1]).astype(np.int32))
    return np.maximum(np.stack([box_height, box_width], axis=1), 1).astype(np.int32)


@dataclass(frozen=True)
class CentreView:
    """How an image is shown in evaluation: its shorter side resized, then the centre of that cropped, as by torchvision's
    `Resize` and `CenterCrop`.

    Attributes:
        size: height and width of the result, in pixels.
        share: of the resized shorter side that the crop keeps (224 of 256: 0.875).
    """

    size: int
    share: float

    @property
    def resized(self) -> int:
        """The shorter side of the resized image, in pixels."""
        return max(round(self.size / self.share), self.size)

    def boxes(self, sizes: np.ndarray) -> np.ndarray:
        """(N, 4) float32 top, left, bottom, right in pixels of the image: what resizing and cropping at once has to read.

        Args:
            sizes: (N, 2) int32, height and width of each image.
        """
        wide = sizes.astype(np.int64)
        shorter = wide.min(axis=1, keepdims=True)
        resized = wide * self.resized // shorter
        start = np.rint((resized - self.size) / 2)
        scale = wide / resized
        return np.concatenate([start * scale, (start + self.size) * scale], axis=1).astype(np.float32)
