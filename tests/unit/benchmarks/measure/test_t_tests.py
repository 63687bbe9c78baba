"""Tests the t-tests against published values and against scipy's own tests."""

import math
from statistics import stdev
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.measure.t_tests import n_to_tell, p_not_above, welch

# the sleep of ten patients with two drugs, in hours (Student 1908, Biometrika 6, page 20); `t.test(extra ~
# group, data = sleep)` of R gives t = -1.8608, df = 17.776, p = 0.07939, and the interval [-3.3654832,
# 0.2054832]
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


def test_welch_gives_the_values_of_students_paper():
    difference = welch(*SLEEP)
    assert difference is not None
    assert difference.mean == pytest.approx(1.58)
    assert (difference.t, difference.freedom) == pytest.approx((1.8608, 17.776), abs=5e-4)
    assert difference.p == pytest.approx(0.07939, abs=5e-6)
    assert (difference.low, difference.high) == pytest.approx((-0.2054832, 3.3654832), abs=1e-6)


def test_welch_agrees_with_scipy_on_samples_of_unequal_size_and_spread():
    first, second = [94.01, 94.2, 93.8, 94.13], [94.4, 95.9, 93.0, 94.7, 96.1, 94.4, 92.2]
    ours = welch(first, second)
    theirs: Any = stats.ttest_ind(second, first, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert ours is not None
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_no_difference_is_told_without_spread_or_with_one_value():
    assert welch([1.0], [1.0, 2.0]) is None
    assert welch([1.0, 1.0], [2.0, 2.0]) is None


@pytest.mark.parametrize(("effect", "n"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_n_is_that_of_power_tables(effect: float, n: int):
    """`power.t.test(delta = d, power = .8)` of R gives 393.4, 63.8, 25.5 and 16.7."""
    assert n_to_tell(effect, (1.0, 1.0)) == n
    assert n_to_tell(-10 * effect, (100.0, 100.0)) == n_to_tell(effect, (1.0, 1.0))


def test_n_has_its_limits():
    assert n_to_tell(0.0, (1.0, 1.0)) is None
    assert n_to_tell(1e-6, (1.0, 1.0)) is None
    assert n_to_tell(1e6, (1.0, 1.0)) == 2
    assert n_to_tell(1.0, (0.0, 1.0)) is not None


# upper points of Student's t distribution as printed in tables (Fisher & Yates 1963, table III): degrees of
# freedom, and t with p = .05, .01 and .005 above it
T_TABLE = [
    (1, (6.314, 31.821, 63.657)),
    (2, (2.920, 6.965, 9.925)),
    (4, (2.132, 3.747, 4.604)),
    (9, (1.833, 2.821, 3.250)),
    (29, (1.699, 2.462, 2.756)),
    (120, (1.658, 2.358, 2.617)),
]


def with_mean_and_deviation(mean: float, deviation: float, n: int) -> list[float]:
    """Return n numbers with this mean, and this standard deviation with n - 1."""
    numbers = [float(number - (n - 1) / 2) for number in range(n)]
    return [mean + deviation / stdev(numbers) * number for number in numbers]


@pytest.mark.parametrize(("freedom", "points"), T_TABLE)
def test_one_mean_has_the_p_of_the_tables(freedom: int, points: tuple[float, ...]):
    n = freedom + 1
    for t, p in zip(points, (0.05, 0.01, 0.005), strict=True):
        values = with_mean_and_deviation(0.94 + t * 0.002 / math.sqrt(n), 0.002, n)
        assert p_not_above(values, 0.94) == pytest.approx(p, rel=2e-3)
        below = [2 * 0.94 - value for value in values]
        assert p_not_above(below, 0.94) == pytest.approx(1 - p, rel=2e-3)


def test_one_mean_of_students_paper():
    """`t.test(extra ~ group, data = sleep, paired = TRUE)` of R: t = 4.0621, df = 9, p = 0.002833 on two
    sides."""
    gained = [second - first for first, second in zip(*SLEEP, strict=True)]
    assert p_not_above(gained, 0.0) == pytest.approx(0.002833 / 2, rel=5e-4)


@pytest.mark.parametrize(
    ("freedom", "t", "confidence_t"),
    [(2, 2.920, 4.303), (8, 1.860, 2.306), (18, 1.734, 2.101), (40, 1.684, 2.021)],
)
def test_two_means_of_equal_size_and_deviation_have_the_p_and_the_interval_of_the_tables(
    freedom: int, t: float, confidence_t: float
):
    """Then Welch's test is Student's with 2 n - 2 degrees of freedom."""
    n = freedom // 2 + 1
    error = 0.3 * math.sqrt(2 / n)
    difference = welch(with_mean_and_deviation(5, 0.3, n), with_mean_and_deviation(5 - t * error, 0.3, n))
    assert difference is not None
    assert (difference.t, difference.freedom) == pytest.approx((-t, freedom))
    assert difference.p == pytest.approx(0.10, rel=2e-3)
    half = confidence_t * error
    assert (difference.low, difference.high) == pytest.approx(
        (-t * error - half, -t * error + half), rel=1e-3
    )


def test_n_with_unequal_deviations_is_that_of_simulated_tests():
    """Of 20,000 pairs of samples of size n, 80 % reach p < .05; of size n - 3 fewer do."""
    difference, deviations = 1.0, (0.5, 1.5)
    n = n_to_tell(difference, (deviations[0] ** 2, deviations[1] ** 2))
    assert n is not None

    def power(size: int) -> float:
        generator = np.random.default_rng(0)
        first, second = (
            generator.normal(mean, deviation, (20_000, size))
            for mean, deviation in zip((0.0, difference), deviations, strict=True)
        )
        parts = first.var(1, ddof=1) / size, second.var(1, ddof=1) / size
        t = (second.mean(1) - first.mean(1)) / np.sqrt(parts[0] + parts[1])
        freedom = (size - 1) * (parts[0] + parts[1]) ** 2 / (parts[0] ** 2 + parts[1] ** 2)
        return float((np.abs(t) > stats.t.ppf(0.975, freedom)).mean())

    assert power(n) == pytest.approx(0.8, abs=0.02)
    assert power(n - 3) < 0.79


def test_one_mean_is_tested_against_a_target():
    values = [0.9402, 0.9411, 0.9396, 0.9408]
    for target in (0.93, 0.94, 0.95):
        expected: Any = stats.ttest_1samp(values, target, alternative="greater")
        assert p_not_above(values, target) == pytest.approx(expected.pvalue)
    assert p_not_above([0.94], 0.9) is None
    assert [p_not_above([0.94, 0.94], target) for target in (0.93, 0.94, 0.95)] == [0.0, 0.5, 1.0]
    assert not math.isnan(p_not_above([0.0, 1.0], 0.5) or 0.0)
