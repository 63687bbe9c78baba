"""Draws the operation of TrivialAugment for each image, and lists the operations with their strengths."""

import numpy as np

from pipeline.data.sampling.philox import TRIVIAL, below, philox_at

BINS = 31  # of strength
# in torchvision's order
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "auto_contrast", "equalize"),
)
_SIGNED = {  # strengths from 0 to this, negative for half of the images
    **dict.fromkeys(("shear_x", "shear_y", "brightness", "color", "contrast", "sharpness"), 0.99),
    **dict.fromkeys(("translate_x", "translate_y"), 32.0),
    "rotate": 135.0,
}


def draw_trivial_augment(seed: int, samples: np.ndarray, showings: np.ndarray) -> np.ndarray:
    """Draw one operation and its strength for each image, all of them equally often.

    See Müller & Hutter 2021 (arXiv:2103.10158), algorithm 1, with the operations of its wide space.

    Args:
        seed: of the run.
        samples: (B,) int64 sample ids.
        showings: (B,) int64, as in `draw_erasing`.

    Returns:
        (B, 2) int32: the place in `OPERATIONS`; and the strength, whose sign is that of operations with a
        direction: b or -1 - b, for b in [0, `BINS`).
    """
    words = philox_at(seed, showings, TRIVIAL, samples)
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    strength = below(low[:, 0], BINS)
    return np.stack(
        [below(high[:, 0], len(OPERATIONS)), np.where(high[:, 1] & 1, -1 - strength, strength)], 1
    )


def strengths_of(draws: np.ndarray) -> np.ndarray:
    """Return what the draws mean: (B,) float64.

    These are the values of torchvision's `TrivialAugmentWide`: the slope of a shear, pixels of a translation
    (whole), degrees of a rotation, the bits that posterising keeps, the first grey level that solarising
    inverts; for brightness, colour, contrast and sharpness the difference of the factor from 1; else 0.

    Args:
        draws: (B, 2) int32 of `draw_trivial_augment`.
    """
    return _TABLE[draws[:, 0], draws[:, 1]]


def _strengths(operation: str) -> np.ndarray:
    """Return the strength of each draw: (2 * BINS,); a negative draw counts from the end."""
    steps = np.arange(BINS) / (BINS - 1)
    if operation in _SIGNED:
        values = _SIGNED[operation] * steps
        if operation.startswith("translate"):
            values = np.floor(values)
        return np.concatenate([values, -values[::-1]])
    values = {"posterize": np.rint(8 - 6 * steps), "solarize": 255 * (1 - steps)}.get(operation, 0 * steps)
    return np.concatenate([values, values[::-1]])


_TABLE = np.stack([_strengths(operation) for operation in OPERATIONS])
