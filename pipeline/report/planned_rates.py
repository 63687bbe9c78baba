"""Computes the learning rates of a run from its schedule, so that their curve does not depend on the logs."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.config import Config, to_steps
from pipeline.optim.schedule import build_schedule
from pipeline.report.series import Rates
from pipeline.run.records import EvalRecord, TrainRecord

_POINTS = 300


def planned_rates(
    config: Config | None, train: Sequence[TrainRecord], evals: Sequence[EvalRecord]
) -> Rates | None:
    """Return the learning rates from the first step to the last recorded one.

    Args:
        config: of the run; None if it cannot be read.
        train, evals: its records, which tell the steps of an epoch.

    Returns:
        None if the records do not tell the steps of an epoch, or hold other rates than the schedule.
    """
    last = max((*train, *evals), key=lambda record: record.step, default=None)
    if config is None or last is None or not 0 < last.epoch < math.inf:
        return None
    steps_per_epoch = max(round(last.step / last.epoch), 1)
    total = to_steps(config.duration, steps_per_epoch)
    lr_at = build_schedule(config.optimizer.lr, config.schedule, steps_per_epoch, total)
    if any(not math.isclose(record.lr, lr_at(record.step - 1), rel_tol=1e-6) for record in train):
        return None
    steps = np.unique(np.linspace(0, last.step - 1, min(last.step, _POINTS)).round().astype(int))
    rates = np.array([lr_at(step) for step in steps.tolist()])
    return (steps + 1) / steps_per_epoch, rates
