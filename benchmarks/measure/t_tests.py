"""Tests means with Student's t: one mean against a target, and the difference of two (Welch 1947).

scipy.stats takes a second to import, so each function imports it for itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

CONFIDENCE = 0.95  # of the interval of a difference
ALPHA = 1 - CONFIDENCE  # two-sided, of the test that an n is computed for
POWER = 0.8  # the probability that this test finds the difference
_LARGEST_N = 10**6


def p_not_above(values: Sequence[float], target: float) -> float | None:
    """Test that the mean of a population is above a target: the one-sided t-test of one sample.

    Returns:
        The probability of a sample mean as large as this one, or larger, if the mean of the population were
        the target; None for fewer than two values.

    >>> round(p_not_above([5.1, 4.9, 5.6, 5.8, 5.2], 5.0), 4)
    0.0627
    """
    from scipy.stats import t

    if len(values) < 2:
        return None
    distance, error = fmean(values) - target, math.sqrt(variance(values) / len(values))
    if error == 0:  # all values are the same
        return 0.5 if distance == 0 else float(distance < 0)
    return float(t.sf(distance / error, len(values) - 1))


@dataclass(frozen=True)
class Difference:
    """The difference of two means, by Welch's t-test, which does not assume that their σ are equal.

    Attributes:
        mean: of the second sample less that of the first.
        low, high: bounds of its 95 % confidence interval.
        t: the mean over its standard error.
        freedom: degrees of freedom (Welch-Satterthwaite).
        p: two-sided; the probability of a difference as large as this one between samples of populations with
            the same mean.
        n_needed: values that each of the two samples would need, so that a test at α = 5 % finds a true
            difference of this size with a probability of 80 %, at the σ of these samples; None if the means
            are equal, or if it is above a million.
    """

    mean: float
    low: float
    high: float
    t: float
    freedom: float
    p: float
    n_needed: int | None


def welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """Compare the means of two samples (Welch 1947, Biometrika 34, 28-35).

    Returns:
        None if a sample has fewer than two values, or if neither has any spread.
    """
    from scipy.stats import t

    if min(len(first), len(second)) < 2:
        return None
    mean, variances = fmean(second) - fmean(first), (variance(first), variance(second))
    parts = variances[0] / len(first), variances[1] / len(second)
    if sum(parts) == 0:
        return None
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(first) - 1) + parts[1] ** 2 / (len(second) - 1))
    half = float(t.ppf(1 - ALPHA / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom))
    n_needed = n_to_tell(mean, variances)
    return Difference(mean, mean - half, mean + half, mean / error, freedom, p, n_needed)


def n_to_tell(difference: float, variances: tuple[float, float]) -> int | None:
    """Return the smallest size of two equal samples with which Welch's test finds a difference.

    The power is that of the two-sided test at α = 5 %, and is to be 80 %: the noncentral t distribution gives
    it (Cohen 1988, chapter 2).

    Args:
        difference: of the means of the populations.
        variances: of the populations.

    Returns:
        None if there is no difference, or if the size is above a million.
    """
    if difference == 0 or _power(difference, variances, _LARGEST_N) < POWER:
        return None
    low, high = 1, 2  # the power grows with n
    while _power(difference, variances, high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(difference, variances, middle) >= POWER else (middle, high)
    return high


def _power(difference: float, variances: tuple[float, float], n: int) -> float:
    from scipy.stats import nct, t

    error = math.sqrt(sum(variances) / n)
    freedom = (n - 1) * sum(variances) ** 2 / (variances[0] ** 2 + variances[1] ** 2)
    bound, shift = float(t.ppf(1 - ALPHA / 2, freedom)), abs(difference) / error
    if shift > bound + 40:  # nct loses its digits far from 0
        return 1.0
    return float(nct.sf(bound, freedom, shift) + nct.cdf(-bound, freedom, shift))
