"""Predicts weak scaling on more processes from measurements on one and on two, before more are measured.

    step on N processes = computing + waiting for the slowest of N + preparing gradients + all-reduce

All but one of these parts are measured by themselves on two processes. Not all differences between steps are
waited for: a late step may be followed by a short one, as when only the clock was read late. The share that
is waited for is what a step on two takes longer than the other parts. benchmarks/README.md has the
assumptions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.publish.records import Predicted, Spread
from benchmarks.publish.strict import Strict

TOLERANCE = 0.02  # of the measured throughput: a prediction that is off by more lacks a part


class Calibration(Strict):
    """Measurements on two processes that the prediction needs beside those of the benchmark.

    Attributes:
        rank_step_s: seconds of single steps of each process, which trains a network of its own while the
            others do.
        averaging_s: seconds that a step takes longer if it prepares its gradients for the all-reduce, and
            exchanges them with nobody.
        messages: bytes of each all-reduce of a step.
        reduce_s: seconds of an all-reduce by its bytes; that of the fewest bytes is the latency.
    """

    rank_step_s: tuple[tuple[float, ...], ...]
    averaging_s: float
    messages: tuple[int, ...]
    reduce_s: dict[int, float]


class Range(NamedTuple):
    """Two bounds of a quantity that measurements on one and on two processes leave open."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    def __add__(self, other: object) -> "Range":
        assert isinstance(other, Range)
        return Range(self.low + other.low, self.high + other.high)


def exactly(value: float) -> Range:
    return Range(value, value)


def expected_slowest(residuals: Sequence[float], deviation: float, count: int) -> float:
    """Return the expected maximum of COUNT sums, each of a normal deviate and of one of the residuals.

    Args:
        residuals: with mean 0; each is drawn with the same probability.
        deviation: standard deviation of the normal deviate, which has mean 0.
        count: at least 1.

    >>> round(expected_slowest([0.0], 1.0, 2), 3), round(expected_slowest([0.0], 1.0, 8), 3)
    (0.564, 1.424)
    >>> expected_slowest([-1.0, 1.0], 0.0, 2)  # 1 in three of four cases
    0.5
    """
    ordered = np.sort(residuals)
    if deviation == 0:
        below = np.arange(len(ordered) + 1) / len(ordered)
        return float(ordered @ np.diff(below**count))
    from scipy.special import ndtr  # takes a while to import

    reach = 6 * deviation
    x = np.linspace(ordered[0] - reach, ordered[-1] + reach, 4001)
    # of many residuals, some quantiles do
    few = np.quantile(ordered, (np.arange(200) + 0.5) / 200) if len(ordered) > 200 else ordered
    below = ndtr((x[:, None] - few) / deviation).mean(1) ** count
    return float(x[-1] - np.trapezoid(below, x))


@dataclass(frozen=True)
class Model:
    """Weak scaling, from measurements of one group of one process, one of two, and a calibration.

    Attributes:
        one_s: seconds per step of each window of one process.
        two_s: the same of two processes that exchange gradients, each with the batch of the one.
        calibration: on two processes.
    """

    one_s: tuple[float, ...]
    two_s: tuple[float, ...]
    calibration: Calibration

    # --- parts of a step ------------------------------------------------------------------------------------

    @property
    def _means(self) -> np.ndarray:
        return np.array([np.mean(steps) for steps in self.calibration.rank_step_s])

    @property
    def beside_s(self) -> float:
        """Seconds that the first process loses to another one on the same host; 0 if they are within the
        spread of the windows of one process."""
        lost = float(self._means[0]) - float(np.median(self.one_s))
        return lost if lost > half_spread(self.one_s) else 0.0

    @property
    def device_deviation_s(self) -> float:
        """Standard deviation of the mean step between devices, estimated from two of them."""
        first, second = self._means
        return float(abs(second - first)) / math.sqrt(2)

    def computing_s(self, count: int) -> Range:
        """Return the mean over the processes: with no more loss than on two, or with as much for each
        neighbour."""
        first, second = self._means
        alone = float(np.median(self.one_s)) + float(second - first) / 2
        return Range(alone + self.beside_s, alone + (count - 1) * self.beside_s)

    def slowest_device_s(self, count: int) -> float:
        """Return the mean step of the slowest device, over the mean of all: of these two, or the expected."""
        if count == 2:
            return float(np.ptp(self._means)) / 2
        return expected_slowest([0.0], self.device_deviation_s, count)

    def _differences_s(self, count: int) -> float:
        """Return the wait for the slowest process of each step, beyond that for the slowest device, if no
        step made up for another one."""
        first, second = (np.array(steps) for steps in self.calibration.rank_step_s)
        if count == 2:
            return float(np.maximum.outer(first, second).mean() - self._means.max())
        residuals = np.concatenate([first - first.mean(), second - second.mean()])
        whole = expected_slowest(residuals.tolist(), self.device_deviation_s, count)
        return whole - self.slowest_device_s(count)

    @property
    def _beyond_s(self) -> float:
        """Seconds that a step on two takes longer than all parts that are measured by themselves."""
        parts = self.computing_s(2) + self.averaging_s + self.reducing_s(2)
        return float(np.median(self.two_s)) - parts.middle - self.slowest_device_s(2)

    @property
    def waited_share(self) -> float | None:
        """The share of the differences between steps that processes wait for, in [0, 1].

        None if the measurements do not determine it: the differences are not larger than the spread of the
        windows.
        """
        differences = self._differences_s(2)
        noise = math.hypot(half_spread(self.one_s), half_spread(self.two_s))
        if differences <= noise:
            return None
        return min(max(self._beyond_s / differences, 0.0), 1.0)

    def _over_shares(self, part: Callable[[float], Range]) -> Range:
        """Return the bounds of a part that depends on the share: of the one, or of none and of all."""
        share = self.waited_share
        ranges = [part(each) for each in ((0.0, 1.0) if share is None else (share,))]
        return Range(min(each.low for each in ranges), max(each.high for each in ranges))

    def _waiting_s(self, count: int, share: float) -> Range:
        return exactly(self.slowest_device_s(count) + share * self._differences_s(count))

    def waiting_s(self, count: int) -> Range:
        """Return the wait for the slowest device, and for the slowest process of each step."""
        return self._over_shares(partial(self._waiting_s, count))

    def _unexplained_s(self, count: int, share: float) -> Range:
        rest = self._beyond_s - share * self._differences_s(2)
        if rest <= 0:
            return exactly(rest)
        reducing = self.reducing_s(2).middle
        return Range(rest, rest * (self.reducing_s(count).middle / reducing if reducing else 1.0))

    def unexplained_s(self, count: int) -> Range:
        """Return what no part explains of a step on two.

        It stays as it is (one bound), or, if it is a loss, grows as the all-reduce does (the other).
        """
        return self._over_shares(partial(self._unexplained_s, count))

    @property
    def averaging_s(self) -> Range:
        return exactly(max(self.calibration.averaging_s, 0.0))

    def reduce_s(self, num_bytes: int, count: int) -> Range:
        """Return the seconds of an all-reduce on COUNT processes, from its seconds on two.

        A message takes 2 (N - 1) / N times its bytes over the bandwidth. The latency grows with the depth of
        a tree (low), or with the length of a ring (high).
        """
        latency = self.latency_s
        transfer = max(self.calibration.reduce_s[num_bytes] - latency, 0.0) * 2 * (count - 1) / count
        return Range(latency * math.ceil(math.log2(count)) + transfer, latency * (count - 1) + transfer)

    @property
    def latency_s(self) -> float:
        return self.calibration.reduce_s[min(self.calibration.reduce_s)]

    def reducing_s(self, count: int) -> Range:
        """Return the seconds of all messages of a step, during which nothing is computed."""
        return sum((self.reduce_s(size, count) for size in self.calibration.messages), exactly(0.0))

    # --- the whole ------------------------------------------------------------------------------------------

    def step_s(self, count: int) -> Range:
        """Return the seconds per step on COUNT processes."""
        known = self.computing_s(count) + self.averaging_s + self.reducing_s(count)

        def others(share: float) -> Range:
            return self._waiting_s(count, share) + self._unexplained_s(count, share)

        return known + self._over_shares(others)

    def predict(self, batch_size: int, count: int) -> Predicted:
        """Return the images per second on COUNT processes, each with a batch of this size."""
        step_s, images = self.step_s(count), batch_size * count
        return Predicted(
            images_per_sec=images / step_s.middle, low=images / step_s.high, high=images / step_s.low
        )


def half_spread(values: Sequence[float]) -> float:
    """Return half of the distance between the 10th and the 90th percentile."""
    spread = Spread.of(values)
    return (spread.p90 - spread.p10) / 2


def miss(predicted: Predicted, images_per_sec: float) -> float:
    """Return by how much a prediction is too high, as a fraction of the measured throughput.

    >>> round(miss(Predicted(images_per_sec=102.0, low=101.0, high=103.0), 100.0), 3)
    0.02
    """
    return predicted.images_per_sec / images_per_sec - 1
