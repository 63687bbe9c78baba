"""Draws a number of samples in which every class has the same fraction as in the whole set."""

import numpy as np


def allocate(class_sizes: np.ndarray, total: int) -> np.ndarray:
    """Divide TOTAL samples among the classes in proportion to their sizes, by largest remainders.

    Of equal remainders, the lower class is first. Every class keeps at least one sample, so `total` is at
    most the number of samples minus the number of classes that have samples.

    Args:
        class_sizes: (C,) int64, samples per class.
        total: samples to take.

    Returns:
        (C,) int64 that sums to `total`.
    """
    most = np.maximum(class_sizes - 1, 0)
    assert 0 <= total <= most.sum(), f"{total} of {class_sizes.sum()} samples"
    shares = class_sizes * total
    count = np.minimum(shares // class_sizes.sum(), most)
    order = np.argsort(-(shares % class_sizes.sum()), kind="stable")
    while (missing := total - count.sum()) > 0:
        count[order[(count < most)[order]][:missing]] += 1
    return count


def draw_stratified(labels: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Draw TOTAL samples without replacement, as many of each class as `allocate` says.

    Args:
        labels: (N,) int64, not negative.
        total: samples to draw.
        generator: of the random numbers.

    Returns:
        (total,) int64, sample ids in ascending order.
    """
    count = allocate(np.bincount(labels), total)
    members = [
        generator.permutation(np.flatnonzero(labels == label))[:n] for label, n in enumerate(count) if n
    ]
    return np.sort(np.concatenate(members)) if members else np.empty(0, np.int64)
