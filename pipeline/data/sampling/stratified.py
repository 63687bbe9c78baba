"""Stratified draws of samples: a number of them, spread over the classes as the classes are spread over the set."""

import numpy as np


def philox(seed: int, stream: str) -> np.random.Generator:
    """A generator of its own for each (seed, stream); STREAM is a name of at most 8 ASCII letters.

    The name fills the key's second word, where the draws of an epoch have the epoch: no run lasts that many.
    """
    word = int.from_bytes(stream.encode("ascii"), "big")
    return np.random.Generator(np.random.Philox(key=np.array([seed, word], np.uint64)))


def allocate(class_sizes: np.ndarray, total: int) -> np.ndarray:
    """How many of TOTAL samples each class gives, in proportion to its size, by largest remainders (ties: the lower class first).

    Every class keeps at least one sample, so `total` is at most the number of samples less the number of classes that have any.

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
    """Draw TOTAL samples without replacement, allocated to the classes by `allocate`.

    Args:
        labels: (N,) int64, not negative.

    Returns:
        (total,) int64, sample ids in ascending order.
    """
    count = allocate(np.bincount(labels), total)
    members = [
        generator.permutation(np.flatnonzero(labels == label))[:n] for label, n in enumerate(count) if n
    ]
    return np.sort(np.concatenate(members)) if members else np.empty(0, np.int64)
