"""Measures calibration: whether predictions of 80 % confidence are right in 80 % of the cases. No torch.

Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599: the expected calibration error
(section 2), the reliability diagram and temperature scaling (section 4.2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError

NUM_BINS = 15  # as in the paper
_LOWEST, _HIGHEST = 0.05, 20.0  # temperatures; all predictions right would ask for 0
_CHUNK = 4096  # rows of logits in one piece: less memory, and faster


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies in one fifteenth of 0 to 1.

    Attributes:
        low, high: bounds of the bin; `high` belongs to it.
        count: number of predictions, at least 1.
        confidence, accuracy: means over them.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The calibration of a network on a data set.

    Attributes:
        error: expected calibration error, a fraction of 1.
        temperature: the number by which to divide logits, so that their likelihood is the largest. Above 1:
            the network is too sure of itself.
        scaled_error: the error with temperature scaling. Each half of the data set is measured with the
            temperature of the other half, so that no image tells its own.
        bins: of the reliability diagram, without empty ones.
    """

    error: float
    temperature: float
    scaled_error: float
    bins: tuple[Bin, ...]

    @property
    def summary(self) -> str:
        """One sentence for people."""
        return (
            f"expected calibration error {self.error:.2%} ({NUM_BINS} bins); temperature "
            f"{self.temperature:.3g} makes it {self.scaled_error:.2%}"
        )


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Measure the calibration of (N, K) float logits for (N,) integer labels.

    Raises:
        UserError: other arrays, or labels that are no classes.

    >>> calibrate(np.zeros((4, 2)), np.array([0, 0, 1, 1])).error
    0.0
    """
    if logits.ndim != 2 or labels.shape != (len(logits),) or not len(labels):
        raise UserError(
            f"logits: shape {logits.shape}, and labels of shape {labels.shape}; give (N, K) and (N,), with "
            "at least one image"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(f"labels: not whole numbers from 0 to {logits.shape[1] - 1}; give indices of classes")
    right, confidence = logits.argmax(1) == labels, _confidence(logits, 1.0)
    bins = reliability(confidence, right)
    halves = (slice(0, None, 2), slice(1, None, 2))  # the test set may be sorted by class
    scaled = confidence.copy()
    for this, other in (halves, halves[::-1]):
        if len(labels) > 1:
            scaled[this] = _confidence(logits[this], fit_temperature(logits[other], labels[other]))
    return Calibration(
        expected_error(bins),
        fit_temperature(logits, labels),
        expected_error(reliability(scaled, right)),
        bins,
    )


def reliability(confidence: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    """Return the bins of the reliability diagram that are not empty.

    Args:
        confidence: (N,) float in [0, 1], of the predicted class.
        right: (N,) bool.
    """
    number = np.clip(np.ceil(confidence.astype(np.float64) * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(number, minlength=NUM_BINS)
    confidences = np.bincount(number, confidence, NUM_BINS) / np.maximum(counts, 1)
    accuracies = np.bincount(number, right, NUM_BINS) / np.maximum(counts, 1)
    return tuple(
        Bin(i / NUM_BINS, (i + 1) / NUM_BINS, int(counts[i]), float(confidences[i]), float(accuracies[i]))
        for i in np.flatnonzero(counts)
    )


def expected_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of accuracy and confidence, each bin weighted by its predictions."""
    total = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.accuracy - bin.confidence) for bin in bins) / total


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature of the least cross-entropy, from 0.05 to 20.

    The cross-entropy is convex in 1 / temperature: Newton's method, and bisection where a step leaves the
    bracket.
    """
    low, high, inverse = 1 / _HIGHEST, 1 / _LOWEST, 1.0
    for _ in range(40):
        slope, curvature = _derivatives(logits, labels, inverse)
        if slope == 0:  # the least value; or all logits so far apart that they tell nothing more
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else math.inf
        step = newton if low < newton < high else math.sqrt(low * high)
        if abs(step - inverse) < 1e-5 * inverse:
            break
        inverse = step
    return 1 / inverse


def _derivatives(logits: np.ndarray, labels: np.ndarray, inverse: float) -> tuple[float, float]:
    """Return the first and the second derivative of the summed cross-entropy by the inverse temperature."""
    first = second = 0.0
    for start in range(0, len(logits), _CHUNK):
        values, chosen = logits[start : start + _CHUNK].astype(np.float64), labels[start : start + _CHUNK]
        shares = _softmax(values * inverse)
        mean = (shares * values).sum(1)
        first += float((mean - np.take_along_axis(values, chosen[:, None], 1)[:, 0]).sum())
        second += float(((shares * values**2).sum(1) - mean**2).sum())
    return first, second


def _confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    parts = [
        _softmax(logits[start : start + _CHUNK].astype(np.float64) / temperature).max(1)
        for start in range(0, len(logits), _CHUNK)
    ]
    return np.concatenate(parts)


def _softmax(values: np.ndarray) -> np.ndarray:
    shares = np.exp(values - values.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)
