"""Tests the t-tests against published values and against scipy's own tests."""

import math
from typing import Any

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


def test_one_mean_is_tested_against_a_target():
    values = [0.9402, 0.9411, 0.9396, 0.9408]
    for target in (0.93, 0.94, 0.95):
        expected: Any = stats.ttest_1samp(values, target, alternative="greater")
        assert p_not_above(values, target) == pytest.approx(expected.pvalue)
    assert p_not_above([0.94], 0.9) is None
    assert [p_not_above([0.94, 0.94], target) for target in (0.93, 0.94, 0.95)] == [0.0, 0.5, 1.0]
    assert not math.isnan(p_not_above([0.0, 1.0], 0.5) or 0.0)
