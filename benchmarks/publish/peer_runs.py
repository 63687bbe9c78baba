"""Defines the part of a record that holds whole trainings by one program, for comparison with others."""

import math
from collections.abc import Callable
from statistics import fmean, stdev

from pydantic import Field

from benchmarks.publish.strict import Strict


class PeerEpoch(Strict):
    """One epoch.

    Attributes:
        accuracy: on the test set at its end, a fraction of 1.
        evaluated_s: seconds from the command to the end of its evaluation.
        images_per_sec: of its training, loader and step together, without evaluating and saving; None if the
            program was still warming up.
    """

    accuracy: float = Field(ge=0, le=1)
    evaluated_s: float
    images_per_sec: float | None


class PeerRun(Strict):
    """One training.

    Attributes:
        seed: None if the program takes none.
        command: as it was run.
        wall_s: seconds from the command to the end of the process.
        cpu_s: seconds of all cores, in user and system mode, of the process and those that it waited for.
        peak_memory_bytes: largest use of the GPU's memory beyond that before the command; None on the CPU.
        epochs: in their order.
    """

    seed: int | None
    command: str
    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None
    epochs: tuple[PeerEpoch, ...] = Field(min_length=1)

    @property
    def accuracy(self) -> float:
        """Accuracy at the end."""
        return self.epochs[-1].accuracy

    @property
    def rates(self) -> tuple[float, ...]:
        """Images per second of training, of the epochs after the first; without those of warm-up."""
        rates = (epoch.images_per_sec for epoch in self.epochs[1:])
        return tuple(rate for rate in rates if rate is not None)

    @property
    def rate(self) -> float | None:
        """Images per second of training over the epochs after the first; None if no epoch tells."""
        return len(self.rates) / sum(1 / rate for rate in self.rates) if self.rates else None

    def whole_rate(self, images_per_epoch: int) -> float | None:
        """Return the training images per second of wall time over whole epochs after the first, evaluating
        and saving included; None for a single epoch."""
        seconds = self.epochs[-1].evaluated_s - self.epochs[0].evaluated_s
        return images_per_epoch * (len(self.epochs) - 1) / seconds if seconds > 0 else None

    def seconds_to(self, accuracy: float) -> float | None:
        """Return the seconds from the command to the first evaluation with this accuracy, if there is one."""
        return next((epoch.evaluated_s for epoch in self.epochs if epoch.accuracy >= accuracy), None)


class PeerRuns(Strict):
    """Trainings of one program, one after the other, in turn with those of others.

    Attributes:
        runs: in their order.
        planned: number of runs that were asked for.
        images_per_epoch: images that the program trains on in one epoch.
        target: an accuracy that every run of every program reached, a fraction of 1.
        words: of the command that a user types, without those that print a line for each step.
        settings: of these words, the options (`--epochs`) and keys (`seed=0`).
        commit: of the program's checkout; None if it has none.
        source_hash: of the program's files.
        versions: of the packages that it uses.
        has_same_network: False if the number of its parameters is known to be another than ours.
        differences: from what this project does, a phrase each.
        step_rate: images per second of the same step on one fixed batch, of this project; None of others.
    """

    runs: tuple[PeerRun, ...] = Field(min_length=1)
    planned: int
    images_per_epoch: int
    target: float
    words: int
    settings: int
    commit: str | None
    source_hash: str
    versions: dict[str, str]
    has_same_network: bool
    differences: tuple[str, ...]
    step_rate: float | None = None

    @property
    def is_complete(self) -> bool:
        """False if the runs were stopped early."""
        return len(self.runs) == self.planned

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Accuracy at the end of each run."""
        return tuple(run.accuracy for run in self.runs)

    @property
    def seconds(self) -> float | None:
        """Mean seconds from the command to `target`; None if a run did not reach it."""
        return self._mean(lambda run: run.seconds_to(self.target))

    @property
    def whole_rate(self) -> float | None:
        """Mean images per second over whole epochs."""
        return self._mean(lambda run: run.whole_rate(self.images_per_epoch))

    @property
    def cores(self) -> float:
        """Mean number of CPU cores in use."""
        return fmean(run.cpu_s / run.wall_s for run in self.runs)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Largest use of the GPU's memory over the runs."""
        peaks = [run.peak_memory_bytes for run in self.runs if run.peak_memory_bytes is not None]
        return max(peaks, default=None)

    @property
    def step_share(self) -> float | None:
        """Images per second of training over those of the same step on one fixed batch."""
        rate = self._mean(lambda run: run.rate)
        return rate / self.step_rate if rate is not None and self.step_rate is not None else None

    def _mean(self, figure: Callable[[PeerRun], float | None]) -> float | None:
        values = [figure(run) for run in self.runs]
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None


class AccuracyTest(Strict):
    """Whether one mean accuracy is lower than another by more than two standard errors.

    Attributes:
        difference: of the means, the first less the second.
        error: standard error of this difference; None if a sample has fewer than two values.
    """

    difference: float
    error: float | None

    @classmethod
    def of(cls, ours: tuple[float, ...], theirs: tuple[float, ...]) -> "AccuracyTest":
        """Compare two samples.

        >>> test = AccuracyTest.of((0.5, 0.75), (0.75, 1.0))
        >>> test.difference, round(test.error, 4), test.holds
        (-0.25, 0.1768, True)
        """
        error = None
        if min(len(ours), len(theirs)) > 1:
            error = math.hypot(*(stdev(values) / math.sqrt(len(values)) for values in (ours, theirs)))
        return cls(difference=fmean(ours) - fmean(theirs), error=error)

    @property
    def holds(self) -> bool | None:
        """True if the first mean is not lower by more than two standard errors; None if that cannot be
        told."""
        return None if self.error is None else self.difference >= -2 * self.error
