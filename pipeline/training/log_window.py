"""Reads the sums of a log window off the device, and refuses numbers that are not finite."""

import math

from pipeline.config import Config, ScaledPrecision
from pipeline.distributed.processes import Processes
from pipeline.errors import TrainingError
from pipeline.run.records import TrainRecord
from pipeline.training.clock import Window
from pipeline.training.plan import Plan
from pipeline.training.state import TrainState


def read_window(
    state: TrainState, processes: Processes, config: Config, plan: Plan, window: Window | None
) -> TrainRecord:
    """Return the record of the open log window, over all processes, and open the next one.

    Waits for the device.

    Args:
        state: whose sums are read and started again.
        processes, config, plan: of the run.
        window: its times; None while the step is warming up.

    Raises:
        TrainingError: the loss is not finite, or too many updates in a row were skipped.
    """
    loss, correct, images = processes.sum(state.totals.values[:3].clone()).tolist()
    skipped, skipped_in_a_row = (int(value) for value in state.totals.values[3:].tolist())
    state.totals.start_window()
    lr = plan.lr_at(state.step - 1)
    _check(state, config, lr, loss, skipped_in_a_row)
    return TrainRecord(
        step=state.step,
        epoch=round(plan.epoch(state.step), 4),
        loss=loss / images if images else None,
        accuracy=correct / images if images else None,
        lr=lr,
        images_per_sec=window.images_per_sec if window else None,
        steps_per_sec=1 / window.step_s if window else None,
        loss_scale=state.precision.loss_scale(),
        skipped_steps=skipped,
    )


def _check(state: TrainState, config: Config, lr: float, loss: float, skipped_in_a_row: int) -> None:
    where, at = f"step {state.step}", f"learning rate {lr:g}"
    advice = f"{_remedies(config)}. The last checkpoint is kept"
    precision = config.precision
    if isinstance(precision, ScaledPrecision) and skipped_in_a_row >= precision.max_consecutive_skips:
        scale = f"loss scale {state.precision.loss_scale():g}"
        overflow = f"{skipped_in_a_row} updates in a row overflowed in fp16"
        raise TrainingError(f"{where}: {overflow} at {scale} and {at}; {advice}")
    if not math.isfinite(loss):
        raise TrainingError(f"{where}: the training loss is {loss} at {at}; {advice}")


def check_weights(state: TrainState, config: Config, plan: Plan) -> None:
    """Check the weights before they are saved: between two log points the loss does not show it yet.

    Raises:
        TrainingError: the state holds numbers that are not finite.
    """
    if not state.is_finite():
        raise TrainingError(
            f"step {state.step}: weights or norm statistics are no longer finite, at learning rate "
            f"{plan.lr_at(state.step - 1):g}; {_remedies(config)}. The last checkpoint is kept"
        )


def _remedies(config: Config) -> str:
    """What keeps the numbers of a run finite, except what the config does already."""
    remedies = ["lower optimizer.lr", "lengthen schedule.warmup"]
    if config.optimizer.clip_norm is None:
        remedies.append("set optimizer.clip_norm=1")
    if config.precision.mode == "fp16":
        remedies.append("use precision.mode=bf16")
    return f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
