"""Which images to explain, and which class of them."""

import difflib
from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from pipeline.errors import UserError


def select_images(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Choose the images most worth looking at: confident mistakes, then the least sure of the right ones.

    Args:
        logits: (N, K) floating point; log-probabilities give the same choice.
        labels: (N,) integer, the true classes.
        count: how many to choose.

    Returns:
        (min(count, N),) int64 indices in order of interest; equals are in order of index.

    >>> logits = np.array([[4.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> select_images(logits, labels=np.array([0, 0, 0]), count=3)  # 2 and 1 are mistakes, 2 the surer one
    array([2, 1, 0])
    """
    assert logits.ndim == 2 and labels.shape == (len(logits),), (
        f"{logits.shape} logits, {labels.shape} labels"
    )
    surprise = -log_softmax(logits.astype(np.float64), axis=1).max(axis=1)  # of the prediction
    wrong = logits.argmax(axis=1) != labels
    order = np.lexsort((np.where(wrong, surprise, -surprise), ~wrong))
    return order[:count]


def parse_target(target: str | int, class_names: Sequence[str]) -> str | int:
    """The class to explain, from what a person writes.

    Args:
        target: `predicted`, `true`, the name of a class, or its index (a name wins over an index).
        class_names: in label order.

    Returns:
        `predicted`, `true`, or an index.

    Raises:
        UserError: no such class; names the nearest.

    >>> parse_target("dog", ["cat", "dog"]), parse_target("0", ["cat", "dog"]), parse_target("true", ["cat", "dog"])
    (1, 0, 'true')
    """
    names = list(class_names)
    if target in ("predicted", "true"):
        return target
    if target in names:
        return names.index(str(target))
    if isinstance(target, int) or target.isdecimal():
        if 0 <= int(target) < len(names):
            return int(target)
        raise UserError(f"class: {target} is none of the indices 0 to {len(names) - 1}")
    near = difflib.get_close_matches(target, names, n=3, cutoff=0.5) or names[:10]
    raise UserError(
        f"class: there is no class {target!r}; near: {', '.join(near)}; or an index, predicted or true"
    )
