"""Selects the images to explain, and the class of each to explain."""

import difflib
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from pipeline.errors import UserError


def select_images(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Select the most telling images: confident mistakes, then right predictions of the lowest confidence.

    Args:
        logits: (N, K) floating point; log-probabilities give the same choice.
        labels: (N,) integer, the true classes.
        count: number of images to select.

    Raises:
        UserError: `count` is less than 1.

    Returns:
        (min(count, N),) int64 indices in order of interest; equals are in order of index.

    >>> logits = np.array([[4.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> labels = np.array([0, 0, 0])  # 2 and 1 are mistakes, 2 the more confident one
    >>> select_images(logits, labels, count=3)
    array([2, 1, 0])
    """
    shapes = f"{logits.shape} logits, {labels.shape} labels"
    assert logits.ndim == 2 and labels.shape == (len(logits),), shapes
    if count < 1:
        raise UserError(f"count: {count} images; give 1 or more")
    log_confidence = log_softmax(logits.astype(np.float64), axis=1).max(axis=1)
    wrong = logits.argmax(axis=1) != labels
    order = np.lexsort((np.where(wrong, -log_confidence, log_confidence), ~wrong))
    return order[:count]


def parse_target(target: str | int, class_names: Sequence[str]) -> str | int:
    """Parse the class to explain, as a user writes it.

    Args:
        target: `predicted`, `true`, the name of a class, or its index (a name wins over an index).
        class_names: in label order.

    Returns:
        `predicted`, `true`, or an index.

    Raises:
        UserError: no such class; names the nearest.

    >>> [parse_target(target, ["cat", "dog"]) for target in ("dog", "0", "true")]
    [1, 0, 'true']
    """
    names = list(class_names)
    if target in ("predicted", "true"):
        return target
    if target in names:
        return names.index(str(target))
    if not isinstance(target, str) or target.isdecimal():
        if 0 <= int(target) < len(names):
            return int(target)
        raise UserError(f"class: {target} is none of the indices 0 to {len(names) - 1}")
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or names[:10]
    raise UserError(
        f"class: there is no class {target!r}; near: {', '.join(near)}; or an index, predicted or true"
    )
