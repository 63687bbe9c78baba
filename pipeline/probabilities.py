"""What logits mean: the one softmax of arrays."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) floating point logits → (N, K) float64 logarithms of the probabilities: -log p also orders what rounds to 1.

    >>> np.exp(log_softmax(np.array([[0.0, 0.0], [1000.0, 0.0]]))).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
