"""Calibration: against counting by hand, and against scipy's minimum of torch's cross-entropy."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from pipeline.errors import UserError
from pipeline.inference.calibration import calibrate, expected_error, fit_temperature, reliability


def drawn(temperature: float, count: int = 4000, num_classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are TEMPERATURE times too large for the labels that are drawn from them."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(count, num_classes))
    shares = torch.tensor(logits).softmax(1).numpy()
    labels = np.array([generator.choice(num_classes, p=row) for row in shares])
    return (temperature * logits).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_scipy_s_minimum(temperature: float):
    logits, labels = drawn(temperature)

    def loss(log_temperature: float) -> float:
        scaled = torch.tensor(logits, dtype=torch.float64) / np.exp(log_temperature)
        return cross_entropy(scaled, torch.tensor(labels)).item()

    expected = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-7}).x)  # pyright: ignore[reportAttributeAccessIssue]
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(temperature, rel=0.1)


def test_the_error_is_that_of_counting_by_hand():
    logits, labels = drawn(2.5)
    shares = torch.tensor(logits).double().softmax(1).numpy()
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (shares.max(1) > low) & (shares.max(1) <= low + 1 / 15)
        if inside.any():
            right = (shares.argmax(1) == labels)[inside].mean()
            total += inside.sum() * abs(right - shares.max(1)[inside].mean())
    found = calibrate(logits, labels)
    assert found.error == pytest.approx(total / len(labels), abs=1e-9)
    assert found.temperature > 2 and found.scaled_error < 0.5 * found.error
    assert sum(bin.count for bin in found.bins) == len(labels)
    assert "temperature 2." in found.summary


def test_the_other_half_gives_the_temperature():
    """An image must not choose the temperature that it is measured with: each half would be perfect here."""
    logits = np.array([[1.0, 0.0], [1.0, 0.0]] * 50, np.float32)
    labels = np.array([0, 1] * 50)  # even images are right, odd ones are wrong
    found = calibrate(logits, labels)
    assert found.temperature == pytest.approx(20, rel=0.01)  # no logit tells anything: all are 50 %
    sure_and_wrong, unsure_and_right = 1.0, 1 - 1 / (1 + np.exp(-1 / 20))
    assert found.scaled_error == pytest.approx((sure_and_wrong + unsure_and_right) / 2, abs=1e-3)


@pytest.mark.parametrize("right", [True, False])
def test_extremes_stay_finite(right: bool):
    logits = np.array([[50.0, 0.0, 0.0]] * 3, np.float32)
    found = calibrate(logits, np.full(3, 0 if right else 1))
    assert found.temperature == pytest.approx(1 if right else 20, rel=0.01)
    assert found.error == pytest.approx(0 if right else 1, abs=1e-6)
    assert np.isfinite(found.scaled_error)
    assert np.isfinite(calibrate(logits[:1], np.array([0])).scaled_error)  # one image has no other half


def test_a_bin_holds_its_upper_bound():
    bins = reliability(np.array([1 / 15, 1.0, 0.0]), np.array([True, True, False]))
    assert [(round(bin.low * 15), bin.count) for bin in bins] == [(0, 2), (14, 1)]
    assert expected_error(bins) == pytest.approx(2 / 3 * abs(0.5 - 1 / 30))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((3, 2)), np.zeros(2, int)),
        (np.zeros((0, 2)), np.zeros(0, int)),
        (np.zeros((2, 2)), np.array([0, 2])),
        (np.zeros((2, 2)), np.array([0.0, 1.0])),
    ],
)
def test_wrong_arrays_are_named(logits: np.ndarray, labels: np.ndarray):
    with pytest.raises(UserError, match="labels"):
        calibrate(logits, labels)
