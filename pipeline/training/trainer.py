"""The training loop: it orchestrates and does no tensor maths."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.config import Config, to_steps
from pipeline.data import Loader, Loaders
from pipeline.distributed.processes import Processes, average_batch_norm
from pipeline.distributed.watchdog import Watch
from pipeline.errors import Preempted, TrainingError
from pipeline.optim.schedule import build_schedule, parts_after_the_end
from pipeline.process.signals import StopSignal
from pipeline.profiling.step_profiler import StepProfiler
from pipeline.run.checkpoint import CheckpointWriter
from pipeline.run.console import TrainingConsole
from pipeline.run.records import MetricsLog
from pipeline.training.clock import Clock
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.state import TrainState
from pipeline.training.step import Step


@dataclass(frozen=True)
class Plan:
    """Every duration of a run, in optimizer steps.

    Attributes:
        lr_at: learning rate of an optimizer step.
        warnings: what of the schedule the run is too short for.
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

        lr_at = build_schedule(config.optimizer.lr, config.schedule, steps_per_epoch, total)
        warnings = tuple(parts_after_the_end(config.schedule, config.duration, steps_per_epoch, total))
        log = config.log
        return cls(
            steps_per_epoch,
            total,
            steps(log.log_every),
            steps(log.eval_every),
            steps(log.checkpoint_every),
            lr_at,
            warnings,
        )

    def due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.total_steps

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch


@dataclass
class Trainer:
    """What `fit` works with."""

    config: Config
    processes: Processes
    state: TrainState
    step: Step
    loaders: Loaders
    plan: Plan
    clock: Clock
    checkpoints: CheckpointWriter | None
    metrics: MetricsLog | None
    console: TrainingConsole
    stop: StopSignal
    watch: Watch
    profiler: StepProfiler | None = None

    def close(self) -> None:
        """End what is shown and written, each whatever becomes of the others; what was saved is on disk then."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.console.close)
            if self.profiler is not None:
                closing.callback(self.profiler.close)
            if self.metrics is not None:
                closing.callback(self.metrics.close)
            if self.checkpoints is not None:
                closing.callback(self.checkpoints.close)


def fit(t: Trainer) -> EvalResult:
    """Train from `state.step` to the end of the plan.

    Returns:
        The evaluation on the test set at the last step.

    Raises:
        TrainingError: the loss is not finite, or too many updates in a row were skipped.
        Preempted: a signal asked to stop; a checkpoint of this very step has been saved.
    """
    state, plan = t.state, t.plan
    evaluation = None
    t.clock.start(steady=t.step.settled)
    while state.step < plan.total_steps:
        t.clock.ask()
        for batch in t.loaders.train.batches_from(state.step):
            t.clock.arrived()
            if t.step.settled and t.step.is_new(batch):
                t.clock.close()
                t.clock.start(steady=False)
                t.console.say(
                    f"step {state.step}: images of {batch.images.shape[2]}x{batch.images.shape[3]} pixels from here on"
                )
            t.watch.at(f"in step {state.step + 1}")
            t.step(batch)
            t.clock.step(t.config.data.batch_size)
            if t.profiler is not None and t.profiler.after_step(t.step.settled):
                t.clock.spoil()
            t.console.step(state.step)
            evaluates, saves = (
                plan.due(state.step, plan.eval_every),
                plan.due(state.step, plan.checkpoint_every),
            )
            # counted from the last evaluation, so that no sliver of a window follows one
            logs = evaluates or state.step % plan.eval_every % plan.log_every == 0
            stops = t.stop.due(state.step)
            if logs or saves or stops or t.clock.warming_up:
                window = t.clock.close()
                with t.clock.pause():
                    if logs:
                        log_window(t, window)
                    if evaluates:
                        evaluation = evaluate_all(t)
                    if saves or stops or (evaluates and state.best.get("step") == state.step):
                        save(t)
                    if stops and state.step < plan.total_steps:
                        cause = (
                            f"signal {t.stop.number}" if t.stop.requested else "a signal to another process"
                        )
                        raise Preempted(f"by {cause}, saved at step {state.step}; continue with resume=auto")
                t.clock.start(steady=t.step.settled)
            t.watch.at(f"waiting for the batch of step {state.step + 1}")
            if state.step == plan.total_steps:
                break
            t.clock.ask()
    if evaluation is None:  # continued from its last step, whose evaluation is on record
        evaluation = evaluate_weights(t, t.loaders.test)
    return evaluation


def log_window(t: Trainer, window: dict[str, float] | None) -> None:
    """Read the sums of the open window off the device, check and record them."""
    state = t.state
    loss, correct, images = t.processes.sum(state.totals.values[:3].clone()).tolist()
    skipped, in_a_row = (int(value) for value in state.totals.values[3:].tolist())
    state.totals.start_window()
    lr = t.plan.lr_at(state.step - 1)
    if in_a_row >= t.config.precision.max_consecutive_skips:
        raise TrainingError(
            f"step {state.step}: {in_a_row} updates in a row overflowed in fp16 at loss scale {state.precision.loss_scale():g} and "
            f"learning rate {lr:g}; {_remedies(t.config)}. The last checkpoint is kept"
        )
    if not math.isfinite(loss):
        raise TrainingError(
            f"step {state.step}: the training loss is {loss} at learning rate {lr:g}; {_remedies(t.config)}. The last checkpoint is kept"
        )
    state.last_train = {
        "kind": "train",
        "step": state.step,
        "epoch": round(t.plan.epoch(state.step), 4),
        # no images: every update of the window was skipped
        "loss": loss / images if images else None,
        "accuracy": correct / images if images else None,
        "lr": lr,
        "images_per_sec": window["images_per_sec"] if window else None,
        "steps_per_sec": 1 / window["step_s"] if window else None,
        "loss_scale": state.precision.loss_scale(),
        "skipped_steps": skipped,
    }
    t.console.train(state.last_train)
    if t.metrics is not None:
        t.metrics.write(state.last_train)
    if t.checkpoints is not None:
        t.checkpoints.check()


def _remedies(config: Config) -> str:
    """What keeps the numbers of a run finite, but for what it does already."""
    remedies = ["lower optimizer.lr", "lengthen schedule.warmup"]
    if config.optimizer.clip_norm is None:
        remedies.append("set optimizer.clip_norm=1")
    if config.precision.mode == "fp16":
        remedies.append("use precision.mode=bf16")
    return f"{', '.join(remedies[:-1])}, or {remedies[-1]}"


def average_norms(state: TrainState) -> None:
    """Average the statistics of batch norm over the processes, those of the moving average too."""
    average_batch_norm(state.model)
    if state.ema is not None:
        average_batch_norm(state.ema.model)


def evaluate_weights(t: Trainer, loader: Loader) -> EvalResult:
    """What the weights get, and beside it what their moving average gets, if there is one."""
    state, given = t.state, (loader, t.state.precision, t.processes.device, t.config.evaluation.flip_tta)
    result = evaluate(state.model, *given)
    return result if state.ema is None else replace(result, ema=evaluate(state.ema.model, *given))


def evaluate_all(t: Trainer) -> EvalResult:
    """Evaluate on the test set and the holdout, record both, and remember the best (of the raw weights); the test set's result."""
    state = t.state
    t.watch.at(f"in the evaluation after step {state.step}")
    average_norms(state)
    result = None
    for split, loader in (("holdout", t.loaders.holdout), ("test", t.loaders.test)):
        if loader is None:
            continue
        result = evaluate_weights(t, loader)
        record = {
            "kind": "eval",
            "split": split,
            "step": state.step,
            "epoch": round(t.plan.epoch(state.step), 4),
            **result.figures(),
        }
        selects = split == ("test" if t.loaders.holdout is None else "holdout")
        if selects and result.accuracy > state.best.get("accuracy", -1.0):
            state.best = {
                "accuracy": result.accuracy,
                "step": state.step,
                "selected_on": split,
                "test_accuracy": None,
            }
        if split == "test" and state.best.get("step") == state.step:
            state.best["test_accuracy"] = result.accuracy
        t.console.evaluated(
            state.last_train if split == "test" else None, record, t.plan.total_steps / t.plan.steps_per_epoch
        )
        if t.metrics is not None:
            t.metrics.write(record)
    assert result is not None
    return result


def save(t: Trainer) -> None:
    """Checkpoint this step; every process takes part in averaging and summing, rank 0 writes.

    Raises:
        TrainingError: there are numbers in it that are not finite, or the checkpoint before could not be written.
    """
    t.watch.at(f"saving step {t.state.step}")
    average_norms(t.state)
    t.processes.sum(t.state.totals.values[:3])
    if not t.processes.is_main:  # rank 0 has it all now
        t.state.totals.start_window()
    if not t.state.is_finite():  # between two log points the loss tells nothing yet
        raise TrainingError(
            f"step {t.state.step}: weights or norm statistics are no longer finite, at learning rate {t.plan.lr_at(t.state.step - 1):g}; "
            f"{_remedies(t.config)}. The last checkpoint is kept"
        )
    t.state.clock = t.clock.state_dict()
    if t.metrics is not None:
        t.metrics.flush()
    if t.checkpoints is not None:
        t.checkpoints.wait()  # before the snapshot, so that the GPU never holds two
        t.checkpoints.save(t.state.snapshot())
