"""Computes exact channel statistics of uint8 images.

Pixels are counted in integer histograms, from which mean and standard deviation follow without rounding.
"""

import math

import numpy as np
from einops import rearrange

from pipeline.data.batch import NUM_CHANNELS

_CHUNK_PIXELS = 2**18  # bincount widens its input to int64: a chunk takes 2 MiB and fits in the CPU's cache


def channel_histogram(images: np.ndarray) -> np.ndarray:
    """Count pixel values per channel.

    Args:
        images: (N, H, W, 3) uint8.

    Returns:
        (3, 256) int64. The histograms of the parts of a set add up to the histogram of the set.
    """
    pixels = rearrange(images, "n h w c -> (n h w) c")
    histogram = np.zeros((NUM_CHANNELS, 256), np.int64)
    for start in range(0, len(pixels), _CHUNK_PIXELS):
        chunk = pixels[start : start + _CHUNK_PIXELS]
        for channel in range(NUM_CHANNELS):
            histogram[channel] += np.bincount(chunk[:, channel], minlength=256)
    return histogram


def mean_and_std(histogram: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and population standard deviation per channel, as fractions of 1 (pixel / 255).

    Args:
        histogram: (C, 256) int64.
    """
    mean, std = [], []
    for counts in histogram.tolist():  # Python's integers do not overflow
        count = sum(counts)
        total = sum(value * n for value, n in enumerate(counts))
        squares = sum(value * value * n for value, n in enumerate(counts))
        mean.append(total / (255 * count))
        std.append(math.sqrt(count * squares - total * total) / (255 * count))
    return tuple(mean), tuple(std)
