"""Lays out the reliability diagram: the accuracy of predictions over their confidence, in pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inference.calibration import NUM_BINS, Bin, expected_error, reliability
from pipeline.inference.predictions import Predictions
from pipeline.report.series import percent

SIDE = 300
_LEFT, _TOP, _BOTTOM, _RIGHT = 42, 10, 34, 10
_NEAR_ONE = 0.05  # a temperature that changes hardly anything
_LARGEST_DOT, _SMALLEST_DOT = 16.0, 2.8  # radii


@dataclass(frozen=True)
class Reliability:
    """The diagram of one run.

    Attributes:
        error: expected calibration error, a fraction of 1.
        temperature, scaled_error: as of `Calibration`; None in runs of older versions.
        points: (x, y, radius, tooltip) of each bin that is not empty; the area of a dot is its share of the
            predictions.
    """

    error: float
    temperature: float | None
    scaled_error: float | None
    points: list[tuple[float, float, float, str]]

    side: int = SIDE
    left: int = _LEFT
    right: int = SIDE - _RIGHT
    top: int = _TOP
    bottom: int = SIDE - _BOTTOM

    @property
    def path(self) -> str:
        """The `d` of an SVG path through the points."""
        return "M" + "L".join(f"{x:g} {y:g}" for x, y, *_ in self.points)

    @property
    def ticks(self) -> list[tuple[float, float, str]]:
        """(x, y, label) of the ticks of both axes."""
        return [(_x(share), _y(share), f"{100 * share:g} %") for share in (0, 0.2, 0.4, 0.6, 0.8, 1)]

    @property
    def sentence(self) -> str:
        """What the figures say."""
        text = f"The expected calibration error is {percent(self.error, 2)} ({NUM_BINS} bins)"
        if self.temperature is None or self.scaled_error is None:
            return f"{text}."
        sure = "too sure of itself" if self.temperature > 1 else "less sure of itself than it may be"
        if abs(self.temperature - 1) < _NEAR_ONE:
            sure = "as sure of itself as it should be"
        return (
            f"{text}: the network is {sure}. Its logits divided by the temperature {self.temperature:.3g} "
            f"bring the error to {percent(self.scaled_error, 2)}, measured on each half of the test set with "
            "the temperature of the other half."
        )


def reliability_of(predictions: Predictions) -> Reliability:
    """Return the diagram of the predictions on the test set."""
    bins = reliability(predictions.confidence, predictions.rank == 0)
    temperature, scaled = predictions.calibration.tolist() if len(predictions.calibration) else (None, None)
    return Reliability(expected_error(bins), temperature, scaled, _points(bins))


def _points(bins: Sequence[Bin]) -> list[tuple[float, float, float, str]]:
    total = sum(bin.count for bin in bins)
    return [
        (
            _x(bin.confidence),
            _y(bin.accuracy),
            round(max(_LARGEST_DOT * math.sqrt(bin.count / total), _SMALLEST_DOT), 1),
            f"{bin.count:,} predictions of {percent(bin.low, 0)} to {percent(bin.high, 0)} confidence: "
            f"{percent(bin.accuracy)} right",
        )
        for bin in bins
    ]


def _x(share: float) -> float:
    return round(_LEFT + (SIDE - _RIGHT - _LEFT) * share, 1)


def _y(share: float) -> float:
    return round(SIDE - _BOTTOM - (SIDE - _BOTTOM - _TOP) * share, 1)
