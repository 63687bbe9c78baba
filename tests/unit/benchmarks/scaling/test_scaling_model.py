"""Tests the prediction of weak scaling: closed forms, a simulation, and what it calls not determined."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks.publish import readme
from benchmarks.publish.columns import to_markdown
from benchmarks.publish.records import Predicted, Record
from benchmarks.scaling import prediction
from benchmarks.scaling.scaling_model import Calibration, Model, Range, expected_slowest
from tests.unit.benchmarks.results import EXAMPLES

ALONE = 10e-3
GRADIENTS, LATENCY = 45_000_000, 256
BYTES_PER_S = 200e9


def calibration(latency: float = 0.0, **changes: Any) -> Calibration:
    """Return measurements of two equal devices without jitter, and of links of 200 GB/s."""
    values: dict[str, Any] = {
        "rank_step_s": ((ALONE,) * 3,) * 2,
        "averaging_s": 0.0,
        "messages": (GRADIENTS,),
        "reduce_s": {GRADIENTS: latency + GRADIENTS / BYTES_PER_S, LATENCY: latency},
    }
    return Calibration(**(values | changes))


def model(beyond_s: float = 0.0, **changes: Any) -> Model:
    """Return a model of a machine whose step on two takes so much longer than what is measured by itself."""
    measured = calibration(**changes)
    alone = Model((ALONE,), (ALONE,), measured)  # of parts that do not depend on the step on two
    parts = alone.computing_s(2) + alone.averaging_s + alone.reducing_s(2)
    return Model((ALONE,), (parts.middle + alone.slowest_device_s(2) + beyond_s,), measured)


@pytest.mark.parametrize(("count", "share"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_messages_take_their_share_of_the_bandwidth(count: int, share: float):
    """On N processes 2 (N - 1) / N of the bytes are sent: as many as there are on two."""
    step = ALONE + share * GRADIENTS / BYTES_PER_S
    assert model().step_s(count) == pytest.approx((step, step))
    assert model().predict(1024, count).images_per_sec == pytest.approx(1024 * count / step)


@pytest.mark.parametrize(("count", "tree", "ring"), [(2, 1, 1), (4, 2, 3), (8, 3, 7)])
def test_latency_grows_by_a_tree_or_by_a_ring(count: int, tree: int, ring: int):
    """There are no bytes to speak of."""
    found = model(messages=(1024, 1024), reduce_s={LATENCY: 20e-6, 1024: 20e-6})
    assert found.step_s(count) == pytest.approx((ALONE + 40e-6 * tree, ALONE + 40e-6 * ring))


def test_what_no_part_explains_stays_or_grows_with_the_all_reduce():
    rest, base = 0.1e-3, ALONE + 1.75 * GRADIENTS / BYTES_PER_S
    assert model(rest).step_s(2).middle == pytest.approx(model(rest).two_s[0])
    assert model(rest).step_s(8) == pytest.approx((base + rest, base + 1.75 * rest))
    assert model(-rest).step_s(8) == pytest.approx((base - rest, base - rest))


JITTER = ((0.99 * ALONE, ALONE, 1.01 * ALONE),) * 2
# of two draws from -1, 0 and 1 the expected maximum is 4 / 9; of eight almost 1
SLOWEST = {2: 4 / 9 * 1e-4, 8: (1 - (2 / 3) ** 8 - (1 / 3) ** 8) * 1e-4}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_differences_between_steps_is_waited_for(share: float):
    found = model(share * SLOWEST[2], rank_step_s=JITTER)
    assert found.waited_share == pytest.approx(share, abs=1e-9)
    assert found.waiting_s(8).middle == pytest.approx(share * SLOWEST[8], abs=1e-9)
    base = ALONE + 1.75 * GRADIENTS / BYTES_PER_S
    assert found.step_s(8).middle == pytest.approx(base + share * SLOWEST[8])
    assert any(f"wait for: {100 * share:.1f} %" in line for line in prediction.describe(found))


@pytest.mark.parametrize(("beyond", "share"), [(-0.5, 0.0), (3.0, 1.0)])
def test_a_share_beyond_its_bounds_leaves_something_unexplained(beyond: float, share: float):
    found = model(beyond * SLOWEST[2], rank_step_s=JITTER)
    assert found.waited_share == share
    assert found.unexplained_s(2).middle == pytest.approx((beyond - share) * SLOWEST[2])
    assert found.step_s(2).middle == pytest.approx(found.two_s[0])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("slower", [0.0, 0.5e-4, 1e-4, 2e-4])
def test_a_slower_device_is_no_difference_between_steps(slower: float, share: float):
    """Its mean is known: on two, all of it is waited for."""
    random = np.random.default_rng(3)
    ranks = [ALONE + late + random.normal(0, 0.5e-4, 400) for late in (0.0, slower)]
    differences = np.maximum.outer(*ranks).mean() - max(each.mean() for each in ranks)
    found = model(share * differences, rank_step_s=tuple(map(tuple, ranks)))
    assert found.slowest_device_s(2) == pytest.approx(abs(ranks[1].mean() - ranks[0].mean()) / 2)
    assert found.waited_share == pytest.approx(share, abs=1e-6)
    assert found.step_s(2).middle == pytest.approx(found.two_s[0])


def test_a_share_within_the_noise_is_not_determined():
    exact = model(0.5 * SLOWEST[2], rank_step_s=JITTER)
    windows = tuple(exact.two_s[0] * factor for factor in (0.98, 1.0, 1.02))
    noisy = Model(exact.one_s, windows, exact.calibration)
    assert noisy.waited_share is None
    assert noisy.waiting_s(8) == pytest.approx((0.0, SLOWEST[8]))
    assert any("wait for: not determined" in line for line in prediction.describe(noisy))
    assert noisy.step_s(2) == pytest.approx((noisy.two_s[1],) * 2), "it was measured, whatever the share"
    base, unexplained = ALONE + 1.75 * GRADIENTS / BYTES_PER_S, 0.5 * SLOWEST[2]
    none, whole = base + 1.75 * unexplained, base + SLOWEST[8] - unexplained
    low, high = noisy.step_s(8)
    assert low == pytest.approx(min(base + unexplained, whole)) and high == pytest.approx(max(none, whole))


def test_messages_that_take_no_time_let_nothing_grow():
    found = model(0.1e-3, messages=(), reduce_s={LATENCY: 0.0})
    assert found.step_s(8) == pytest.approx((ALONE + 0.1e-3,) * 2)


def test_a_bandwidth_that_latency_hides_is_not_determined():
    assert any("bandwidth: not determined" in line for line in prediction.describe(model(latency=1.0)))


def test_devices_differ_and_neighbours_disturb():
    """The second device is 2 % slower. The first one takes 1 % longer beside it than alone."""
    ranks = ((1.01 * ALONE,) * 3, (1.03 * ALONE,) * 3)
    found = model(rank_step_s=ranks)
    deviation = 0.02 * ALONE / 2**0.5
    assert found.device_deviation_s == pytest.approx(deviation)
    assert found.beside_s == pytest.approx(0.01 * ALONE)
    assert found.computing_s(8) == pytest.approx((1.02 * ALONE, 1.08 * ALONE))
    assert found.waiting_s(8).low == pytest.approx(1.4236 * deviation, rel=1e-3)
    spread = Model((0.9 * ALONE, ALONE, 1.1 * ALONE), found.two_s, found.calibration)
    assert spread.beside_s == 0, "it is less than the windows differ"


def test_the_slowest_of_some():
    """Of normal deviates the expected maximum is in every table of order statistics."""
    for count, expected in ((1, 0.0), (2, 0.5642), (4, 1.0294), (8, 1.4236)):
        assert expected_slowest([0.0], 2.0, count) == pytest.approx(2 * expected, abs=1e-3)
    residuals = np.random.default_rng(0).exponential(1.0, 500) - 1
    draws = np.random.default_rng(1).choice(residuals, (20_000, 4))
    assert expected_slowest(residuals.tolist(), 0.0, 4) == pytest.approx(draws.max(1).mean(), abs=0.03)
    noise = np.random.default_rng(2).normal(0, 0.5, draws.shape)
    assert expected_slowest(residuals.tolist(), 0.5, 4) == pytest.approx(
        (draws + noise).max(1).mean(), abs=0.03
    )


@dataclass
class Machine:
    """Processes that meet in every step, simulated step by step.

    Attributes:
        latency: of a message, per hop of a tree.
        makes_up: True if a late step is followed by a short one, as when only the clock was read late.
    """

    latency: float
    makes_up: bool
    averaging_s: float = 0.05e-3

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(7)

    def _late(self, steps: int, count: int) -> np.ndarray:
        """Return by how many seconds each step of each process is late: most are alike, some are very."""
        late = self._random.random((steps, count)) < 0.02
        return self._random.normal(0, 0.02e-3, late.shape) + late * 0.5e-3

    def computing(self, steps: int, count: int) -> np.ndarray:
        """Return the seconds of each step and process that computes by itself."""
        late = self._late(steps + 1, count)
        return ALONE + (late[1:] - late[:-1] if self.makes_up else late[1:])

    def reduce_s(self, num_bytes: int, count: int) -> float:
        return self.latency * np.log2(count) + 2 * (count - 1) / count * num_bytes / BYTES_PER_S

    def steps(self, steps: int, count: int) -> float:
        """Return the mean seconds of a step of processes that exchange gradients."""
        late = np.zeros((steps, count)) if self.makes_up else self._late(steps, count)
        computed = (ALONE + late + self.averaging_s).max(1)
        return float(computed.mean() + self.reduce_s(GRADIENTS, count))

    def calibrate(self) -> Calibration:
        return Calibration(
            rank_step_s=tuple(map(tuple, self.computing(200, 2).T.tolist())),
            averaging_s=self.averaging_s,
            messages=(GRADIENTS,),
            reduce_s={size: self.reduce_s(size, 2) for size in (LATENCY, GRADIENTS)},
        )


@pytest.mark.parametrize("latency", [5e-6, 15e-6])
@pytest.mark.parametrize("makes_up", [False, True])
def test_a_simulated_machine_is_predicted(latency: float, makes_up: bool):
    machine = Machine(latency, makes_up)
    one = tuple(float(machine.computing(100, 1).mean()) for _ in range(5))
    two = tuple(machine.steps(100, 2) for _ in range(5))
    found = Model(one, two, machine.calibrate())
    for count in (4, 8):
        measured = machine.steps(2000, count)
        low, high = found.step_s(count)
        assert abs(found.step_s(count).middle / measured - 1) < 0.01
        assert low < 1.005 * measured and high > 0.995 * measured
    naive = one[0] / machine.steps(2000, 8)
    assert naive < 0.97, "there is something to predict"


def test_ranges_add_up():
    assert Range(1.0, 2.0) + Range(0.5, 1.0) == (1.5, 3.0) and Range(1.0, 2.0).middle == 1.5


def weak(predicted: float, rate: float) -> Record:
    record = next(r for r in EXAMPLES if r.benchmark == "scaling" and r.world_size == 8)
    spread = record.images_per_sec
    assert spread is not None
    return record.model_copy(
        update={
            "predicted": Predicted(images_per_sec=predicted, low=predicted - 10, high=predicted + 10),
            "images_per_sec": spread.model_copy(update={"median": rate}),
        }
    )


def test_predictions_stand_beside_measurements():
    records = [weak(101_000.0, 100_000.0), weak(103_000.0, 100_000.0)]
    table = prediction.table([*EXAMPLES, *records])
    near, far = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert near["predicted images/sec"] == "101,000 (100,990–101,010)" and near["measured"] == "100,000"
    assert (near["prediction off by"], near["verdict"]) == ("+1.0 %", "within 2 %")
    assert (far["prediction off by"], far["verdict"]) == ("+3.0 %", "not within 2 %")
    marker = "<!-- benchmarks:scaling_model -->\n<!-- /benchmarks:scaling_model -->\n"
    assert "No records yet." in readme.render(marker, EXAMPLES, readme.FILES[1])
    assert to_markdown(prediction.table(records[:1])) in readme.render(marker, records[:1], readme.FILES[1])
