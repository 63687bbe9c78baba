"""Draws the samples of an epoch in which every class comes equally often."""

import numpy as np

from pipeline.data.sampling.philox import ORDER, philox_blocks


def draw_balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw as many samples as there are, of every class equally many.

    N samples of C classes give floor(N / C) draws to every class; N mod C classes, drawn at random, get one
    more. Within a class the draws are spread evenly: each sample is drawn floor(q / n) times, and a random
    part of the samples once more, where q is the number of draws of the class and n that of its samples. So
    rare images are repeated, and of a frequent class a random part is seen in each epoch.

    Args:
        labels: (N,) int64, not negative.
        seed: the run's seed.
        epoch: 0 for the first.

    Returns:
        (N,) int64 sample ids, class after class.
    """
    num_samples = len(labels)
    words = philox_blocks(seed, epoch, ORDER, num_samples)  # word 0 is that of the order
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    quota = np.zeros_like(counts)
    quota[present] = num_samples // len(present)
    quota[present[np.argsort(words[: len(present), 2], kind="stable")][: num_samples % len(present)]] += 1
    members = np.lexsort((words[:, 1], labels))  # class after class, in a random order within each
    label = labels[members]
    rank = np.arange(num_samples) - (np.cumsum(counts) - counts)[label]
    size = counts[label]
    return np.repeat(members, quota[label] // size + (rank < quota[label] % size))
