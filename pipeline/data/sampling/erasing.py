"""Draws the boxes of random erasing."""

import numpy as np
from einops import rearrange

from pipeline.data.sampling.philox import ERASING, below, philox_at

_TRIES = 10
_BLOCKS = 3  # Philox blocks of a sample: 24 numbers of 32 bits, 23 of them used
_SCALE, _RATIO = (0.02, 0.33), (0.3, 3.3)


def draw_erasing(
    seed: int, samples: np.ndarray, showings: np.ndarray, image_size: tuple[int, int], probability: float
) -> np.ndarray:
    """Draw the box of each image that is filled with the mean colour.

    It follows torchvision's `RandomErasing` (Zhong et al. 2017, arXiv:1708.04896, algorithm 1): the area is
    uniform in 0.02 to 0.33 of the image, height by width log-uniform in 0.3 to 3.3. Ten tries are made to
    find a box that is smaller than the image in both directions. Its place is uniform. If no try fits, there
    is no box.

    Args:
        seed: of the run.
        samples: (B,) int64 sample ids.
        showings: (B,) int64, how often each sample can have been shown before; without repeats the epoch.
        image_size: height and width of the images, in pixels.
        probability: of an image to have a box.

    Returns:
        (B, 4) int32: top, left, height and width; 0 for an image without a box.
    """
    blocks = samples[:, None] * _BLOCKS + np.arange(_BLOCKS)
    epochs = np.broadcast_to(showings[:, None], blocks.shape)
    words = philox_at(seed, epochs.ravel(), ERASING, blocks.ravel())
    bits = rearrange(words.view(np.uint32), "(n blocks) halves -> n (blocks halves)", blocks=_BLOCKS)
    extents = _draw_extents(bits[:, : 2 * _TRIES] / 2.0**32, image_size)
    extents[bits[:, 2 * _TRIES] / 2.0**32 >= probability] = 0
    places = bits[:, 2 * _TRIES + 1 : 2 * _TRIES + 3].astype(np.uint64)
    corners = below(places, np.array(image_size) - extents + 1)
    return np.concatenate([np.where(extents > 0, corners, 0), extents], axis=1)


def _draw_extents(tries: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return height and width of the first of the tries that fits: (B, 2) int32, 0 if none does.

    Args:
        tries: (B, 20) uniform in [0, 1), pairs of draws: of the area, and of the ratio.
        image_size: height and width, in pixels.
    """
    area = image_size[0] * image_size[1] * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * tries[:, ::2])
    low, high = np.log(_RATIO)
    ratio = np.exp(low + (high - low) * tries[:, 1::2])
    boxes = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=2))).astype(np.int32)
    fits: np.ndarray = np.all(boxes < np.array(image_size), axis=2)
    first = fits.argmax(axis=1)
    return np.where(fits[np.arange(len(boxes)), first, None], boxes[np.arange(len(boxes)), first], 0)
