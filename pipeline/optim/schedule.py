"""Computes the learning rate as a pure function of the optimizer step."""

import math
from collections.abc import Callable

from pipeline.config import EmaConfig, ScheduleConfig, StepSchedule, to_steps


def build_schedule(
    peak: float, config: ScheduleConfig, steps_per_epoch: int, total_steps: int
) -> Callable[[int], float]:
    """Return the learning rate as a function `lr_at(step)`; step 0 is the first update.

    The warm-up is a line from `start_fraction` to the peak (Goyal et al. 2017, arXiv:1706.02677, section
    2.2). Then:

    - `linear` falls in a line to `final_fraction` (the triangle of Smith 2018, arXiv:1803.09820);
    - `cosine` falls along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts);
    - `one_cycle` rises and falls along half a cosine: the two phases of
      `torch.optim.lr_scheduler.OneCycleLR`;
    - `step` multiplies by `gamma` at every milestone (He et al. 2015, arXiv:1512.03385, section 4.2).

    The peak is at step `warmup`. The end of the fall is at `total_steps`, one step after the last update. The
    learning rate depends only on the step, not on the number of processes or on skipped updates.

    >>> from pipeline.config import SmoothSchedule
    >>> config = SmoothSchedule(warmup="2st", start_fraction=0.0)
    >>> lr_at = build_schedule(1.0, config, steps_per_epoch=10, total_steps=10)
    >>> [round(lr_at(step), 3) for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """
    warmup = to_steps(config.warmup, steps_per_epoch, total_steps)
    milestones = sorted(to_steps(m, steps_per_epoch, total_steps) for m in _milestones(config))

    def lr_at(step: int) -> float:
        if step < warmup:
            rise = _half_cosine(step / warmup) if config.name == "one_cycle" else step / warmup
            return peak * (config.start_fraction + (1 - config.start_fraction) * rise)
        if isinstance(config, StepSchedule):
            return peak * config.gamma ** sum(step >= m for m in milestones)
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        fall = progress if config.name == "linear" else _half_cosine(progress)
        return peak * (1 - (1 - config.final_fraction) * fall)

    return lr_at


def parts_after_the_end(
    config: ScheduleConfig, duration: str, steps_per_epoch: int, total_steps: int
) -> list[str]:
    """Describe the parts of the schedule that a run of this length does not reach: a sentence for each key.

    This happens if only `duration` was shortened. It is no error: a short run is a way to try a recipe.
    """
    late = [m for m in _milestones(config) if to_steps(m, steps_per_epoch, total_steps) >= total_steps]
    messages = []
    if late:
        verb = "are" if len(late) > 1 else "is"
        messages.append(
            f"schedule.milestones: {' and '.join(late)} {verb} not before the end of the run, "
            f"{duration}: the learning rate does not fall there; "
            "give earlier ones, or fractions of the run such as [50%, 75%]"
        )
    if to_steps(config.warmup, steps_per_epoch, total_steps) > total_steps:
        messages.append(
            f"schedule.warmup: {config.warmup} is longer than the run, {duration}: the learning rate "
            "does not reach optimizer.lr; shorten it, or give a fraction of the run such as 10%"
        )
    return messages


def average_never_updated(
    config: EmaConfig, duration: str, steps_per_epoch: int, total_steps: int
) -> list[str]:
    """Say so if a run of this length ends before the first update of the moving average."""
    if config.decay is None or to_steps(config.every, steps_per_epoch, total_steps) <= total_steps:
        return []
    return [
        f"ema.every: {config.every} is longer than the run, {duration}: the average stays at the initial "
        "weights; shorten it"
    ]


def _milestones(config: ScheduleConfig) -> tuple[str, ...]:
    return config.milestones if isinstance(config, StepSchedule) else ()


def _half_cosine(progress: float) -> float:
    """Rise from 0 to 1 with slope 0 at both ends."""
    return (1 - math.cos(math.pi * progress)) / 2
