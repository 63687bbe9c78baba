"""Turns every duration of a run into optimizer steps, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.config import Config, MuonConfig, to_steps
from pipeline.optim.schedule import average_never_updated, build_schedule, parts_after_the_end

if TYPE_CHECKING:
    from pipeline.optim.parts import Part

_LEAST_LOGS, _LOGS_OF_SHORT_RUN = 5, 20
# a run of fewer steps is there to try something out, and an evaluation may take longer than all of them
_EVALUATIONS_OF_SHORT_RUN, _LEAST_STEPS = 4, 40


@dataclass(frozen=True)
class Plan:
    """The durations of a run, in optimizer steps.

    Attributes:
        lr_at: learning rate of an optimizer step.
        renormalise_every: interval of Muon's renormalisation; None: never.
        lookahead_every: interval of Lookahead; None: never.
        ema_every: interval of the moving average of the weights.
        warnings: parts of the schedule that a run of this length does not reach.
        uninterrupted: nothing is due after any step.
    """

    steps_per_epoch: int
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    lr_at: Callable[[int], float]
    renormalise_every: int | None
    lookahead_every: int | None
    ema_every: int
    warnings: tuple[str, ...]
    uninterrupted: bool = False

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Plan":
        total = to_steps(config.duration, steps_per_epoch)

        def steps(duration: str) -> int:
            return max(to_steps(duration, steps_per_epoch, total), 1)

        def steps_or_none(duration: str | None) -> int | None:
            return None if duration is None else steps(duration)

        log = config.log
        asked = steps(log.eval_every)
        eval_every = _eval_interval(log.eval_every, asked, total)
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=total,
            log_every=_log_interval(log.log_every, steps(log.log_every), total),
            eval_every=eval_every,
            checkpoint_every=steps(log.checkpoint_every),
            lr_at=build_schedule(config.optimizer.lr, config.schedule, steps_per_epoch, total),
            renormalise_every=steps_or_none(_renormalisation(config)),
            lookahead_every=steps_or_none(config.lookahead.every),
            ema_every=steps(config.ema.every),
            warnings=(
                *parts_after_the_end(config.schedule, config.duration, steps_per_epoch, total),
                *average_never_updated(config.ema, config.duration, steps_per_epoch, total),
                *_evaluated_more_often(config, asked, eval_every),
            ),
        )

    def rates_of(self, config: Config, parts: "Sequence[Part]") -> Callable[[int], list[float]]:
        """Return the learning rates of the parts of the network, as a function of the optimizer step.

        A part with `until` has a schedule of that length, and the rate 0 after it.
        """

        def rate_of(part: "Part") -> Callable[[int], float]:
            end = self.end_of(part)
            if end is None:
                return lambda step: part.lr_ratio * self.lr_at(step)
            lr_at = build_schedule(config.optimizer.lr, config.schedule, self.steps_per_epoch, end)
            return lambda step: part.lr_ratio * lr_at(step) if step < end else 0.0

        rates = [rate_of(part) for part in parts]
        return lambda step: [rate_at(step) for rate_at in rates]

    def end_of(self, part: "Part") -> int | None:
        """Return the step at which the training of a part ends; None: with the run."""
        return None if part.until is None else to_steps(part.until, self.steps_per_epoch, self.total_steps)

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def without_interruptions(self) -> "Plan":
        """Return a plan of the same length without logging, evaluation and saving, not even after the last
        step."""
        return replace(self, uninterrupted=True)

    def due(self, step: int) -> "Due":
        """What is due after a step. Logging is counted from the last evaluation, so that no short window
        follows one."""
        if self.uninterrupted:
            return Due(log=False, evaluate=False, save=False)
        evaluate = self._comes(step, self.eval_every)
        return Due(
            log=evaluate or step % self.eval_every % self.log_every == 0,
            evaluate=evaluate,
            save=self._comes(step, self.checkpoint_every),
        )

    def _comes(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total_steps

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch


def _log_interval(duration: str, steps: int, total: int) -> int:
    """Return the steps between two logs: an interval in steps that a short run holds fewer than five times is
    shortened, so that its curves show something. One in epochs, or a share of the run, is meant for it."""
    if not duration.endswith("st") or total >= _LEAST_LOGS * steps:
        return steps
    return min(steps, max(total // _LOGS_OF_SHORT_RUN, 1))


def _eval_interval(duration: str, steps: int, total: int) -> int:
    """Return the steps between two evaluations: an interval, not a share of the run, that is not shorter than
    the run is shortened, so that the curve of the test set is no single dot."""
    if duration.endswith("%") or total > steps or total < _LEAST_STEPS:
        return steps
    return -(-total // _EVALUATIONS_OF_SHORT_RUN)


def _evaluated_more_often(config: Config, asked: int, every: int) -> tuple[str, ...]:
    """Return a warning if the interval that was asked for is shortened."""
    if every == asked:
        return ()
    return (
        f"log.eval_every: {config.log.eval_every} is not shorter than the run of {config.duration}, which is "
        f"evaluated every {every} steps; log.eval_every=100% evaluates at the end alone",
    )


def _renormalisation(config: Config) -> str | None:
    return config.optimizer.renormalise_every if isinstance(config.optimizer, MuonConfig) else None


@dataclass(frozen=True)
class Due:
    """What follows a step."""

    log: bool
    evaluate: bool
    save: bool

    @property
    def any(self) -> bool:
        return self.log or self.evaluate or self.save
