"""Randomness of the data path, drawn apart from being applied.

Every draw is a pure function of (seed, epoch, sample id): sample i reads block i of a counter-based generator (Philox4x64-10;
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") whose key is (seed, epoch). So the draws do not depend
on the loader, the number of processes or threads, or where a run was interrupted.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange

from pipeline.config import AugmentConfig

# Streams of one (seed, epoch): the highest word of the Philox counter. `mixing.py` has 3.
_ORDER, _AUGMENT, CROPS = 0, 1, 2
_WORDS = 4  # 64-bit words in a Philox block


@dataclass(frozen=True)
class EpochDraws:
    """Draws of one epoch for N samples; all but `order` are indexed by sample id.

    A crop is taken from the padded image at (crop_y, crop_x), then mirrored where `flip`, then Cutout's box is filled.

    Attributes:
        order: (N,) int64, a permutation: the sample ids in the order of the epoch.
        crop_y, crop_x: (N,) int32 in [0, 2 * padding].
        flip: (N,) bool.
        cutout_y, cutout_x: (N,) int32, the box's top left corner in the output; in mode `clipped` part of the box may lie outside.
    """

    order: np.ndarray
    crop_y: np.ndarray
    crop_x: np.ndarray
    flip: np.ndarray
    cutout_y: np.ndarray
    cutout_x: np.ndarray

    def table(self) -> np.ndarray:
        """(N, 5) int32: crop_y, crop_x, flip, cutout_y, cutout_x of each sample id."""
        return np.stack(
            [self.crop_y, self.crop_x, self.flip.astype(np.int32), self.cutout_y, self.cutout_x], axis=1
        )


def philox_blocks(seed: int, epoch: int, stream: int, count: int, first: int = 0) -> np.ndarray:
    """(count, 4) uint64: Philox blocks of a stream, from block FIRST on."""
    generator = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([first, 0, 0, stream], np.uint64)
    )
    return rearrange(generator.random_raw(count * _WORDS), "(n w) -> n w", w=_WORDS)


def below(bits: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Uniform int32 in [0, limit) from 32 random bits in uint64, by multiply and shift (bias below limit / 2**32)."""
    return ((bits * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int32)


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """(N,) int64: the sample ids in the order of the epoch, sorted by a random 64-bit key each."""
    return np.argsort(philox_blocks(seed, epoch, _ORDER, num_samples)[:, 0], kind="stable")


def draw_epoch(
    seed: int, epoch: int, num_samples: int, image_size: tuple[int, int], augment: AugmentConfig
) -> EpochDraws:
    """Draw order, crops, flips and Cutout boxes of one epoch.

    Args:
        seed: the run's seed.
        epoch: 0 for the first.
        num_samples: N, samples in the training set.
        image_size: height and width of the output, in pixels.
        augment: what is switched on; what is off gets its neutral value (centre crop, no flip, box at 0).

    Cutout follows DeVries & Taylor 2017 (arXiv:1708.04552), section 3.1: the centre is uniform over the pixels and the box is clipped
    by the border (`clipped`); `inside` draws the corner so that the whole box is visible.
    """
    words = philox_blocks(seed, epoch, _AUGMENT, num_samples)
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    crops = 2 * augment.crop_padding + 1
    box, (height, width) = augment.cutout, image_size

    def corner(bits: np.ndarray, extent: int) -> np.ndarray:
        if augment.cutout_mode == "inside":
            return below(bits, extent - box + 1)
        return below(bits, extent) - np.int32(box // 2)

    nothing = np.zeros(num_samples, np.int32)
    return EpochDraws(
        order=epoch_order(seed, epoch, num_samples),
        crop_y=below(high[:, 0], crops),
        crop_x=below(low[:, 0], crops),
        flip=(low[:, 1] & np.uint64(1)).astype(bool) & augment.flip,
        cutout_y=corner(high[:, 2], height) if box else nothing,
        cutout_x=corner(low[:, 2], width) if box else nothing,
    )
