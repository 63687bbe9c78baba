"""Turns every duration of a run into optimizer steps, once."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config import Config, to_steps
from pipeline.optim.schedule import build_schedule, parts_after_the_end


@dataclass(frozen=True)
class Plan:
    """The durations of a run, in optimizer steps.

    Attributes:
        lr_at: learning rate of an optimizer step.
        warnings: parts of the schedule that a run of this length does not reach.
    """

    steps_per_epoch: int
    total_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    lr_at: Callable[[int], float]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, config: Config, steps_per_epoch: int) -> "Plan":
        total = to_steps(config.duration, steps_per_epoch)

        def steps(duration: str) -> int:
            return max(to_steps(duration, steps_per_epoch, total), 1)

        log = config.log
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=total,
            log_every=steps(log.log_every),
            eval_every=steps(log.eval_every),
            checkpoint_every=steps(log.checkpoint_every),
            lr_at=build_schedule(config.optimizer.lr, config.schedule, steps_per_epoch, total),
            warnings=tuple(parts_after_the_end(config.schedule, config.duration, steps_per_epoch, total)),
        )

    @property
    def num_epochs(self) -> float:
        return self.total_steps / self.steps_per_epoch

    def due(self, step: int) -> "Due":
        """What is due after a step. Logging is counted from the last evaluation, so that no short window
        follows one."""
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


@dataclass(frozen=True)
class Due:
    """What follows a step."""

    log: bool
    evaluate: bool
    save: bool

    @property
    def any(self) -> bool:
        return self.log or self.evaluate or self.save
