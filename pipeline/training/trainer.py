"""Assembles a run and trains it: the loop takes steps, then does what is due, and computes no tensors itself.

`Trainer.build` is the only place that assembles the parts; `Trainer.fit` is the loop.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from pipeline.config import Config, hash_of_run
from pipeline.data import Batch, Loader, Loaders, Splits, build_loaders
from pipeline.distributed.processes import Processes
from pipeline.distributed.watchdog import Watch
from pipeline.errors import Preempted
from pipeline.models.norm_batches import check_norm_batches
from pipeline.optim.parts import partition
from pipeline.process.command_line import same_command
from pipeline.process.signals import StopSignal, name_of
from pipeline.profiling.step_profiler import StepProfiler
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.console import TrainingConsole
from pipeline.run.folder import RunFolder
from pipeline.run.metrics_log import MetricsLog
from pipeline.run.records import EvalRecord, Split, TrainRecord
from pipeline.run.timeline import Timeline
from pipeline.run.trackers import Trackers
from pipeline.training.build import build_state, build_state_of, captures
from pipeline.training.clock import Clock, Window
from pipeline.training.evaluate import EvalResult
from pipeline.training.evaluator import Evaluator
from pipeline.training.log_window import check_weights, read_window
from pipeline.training.losses import compute_class_weights
from pipeline.training.plan import Due, Plan
from pipeline.training.state import TrainState, load_checkpoint
from pipeline.training.step import Step


@dataclass
class Trainer:
    """One run on this process: its parts, and the loop over them.

    Attributes:
        config: of the run.
        processes: this process among the others.
        splits: the data set; None if the loaders are the caller's.
        loaders: of the data set.
        plan: durations in steps.
        state: all that a checkpoint holds.
        step: takes one training step.
        evaluator: evaluates the state.
        clock: measures the throughput.
        console: shows the progress.
        run: the run folder; None if nothing is written.
        checkpoints, metrics, trackers: write into the run folder and to trackers; None without one, and on
            every rank but 0.
        profiler: records some steps; None if not asked for.
        stop: hears of signals.
        watch: names a rank that hangs; None while nobody watches.
        timeline: times the parts of the run.
        when_settled: called once, when warm-up is over; None: nothing is.
    """

    config: Config
    processes: Processes
    splits: Splits | None
    loaders: Loaders
    plan: Plan
    state: TrainState
    step: Step
    evaluator: Evaluator
    clock: Clock
    console: TrainingConsole
    run: RunFolder | None = None
    checkpoints: CheckpointWriter | None = None
    metrics: MetricsLog | None = None
    trackers: Trackers | None = None
    profiler: StepProfiler | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    watch: Watch | None = None
    timeline: Timeline = field(default_factory=Timeline)
    when_settled: Callable[[], object] | None = None

    @classmethod
    def build(
        cls,
        config: Config,
        splits: Splits | None,
        processes: Processes,
        *,
        model: nn.Module | None = None,
        loaders: Loaders | None = None,
        resume_from: Path | None = None,
        console: TrainingConsole | None = None,
    ) -> "Trainer":
        """Assemble a run, and write nothing. On a GPU, call this and all training inside `side_stream`.

        Args:
            config: of the run.
            splits: the data set; None if both a model and loaders are given.
            processes: this process among the others.
            model: float32, on the device of this process, trained in place; default: the config's.
            loaders: default: the config's.
            resume_from: the checkpoint to continue from.
            console: default: nothing is printed.

        Raises:
            UserError: the config does not fit the data set, the network, the device or the checkpoint.
        """
        loaders = loaders or build_loaders(config, _given(splits), processes.device, processes.shard)
        plan = Plan.of(config, loaders.train.steps_per_epoch)
        if model is None:
            check_norm_batches(config, processes.shard.world_size)
            state = build_state(config, _given(splits), processes, pretrained=resume_from is None)
        else:
            state = build_state_of(model, config, processes)
        state.class_weights = compute_class_weights(
            config.loss, loaders.num_classes, loaders.class_sizes, processes.device
        )
        if resume_from is not None:
            _resume(state, resume_from, processes)
        rates_at = plan.rates_of(config, partition(config.optimizer, state.model))
        capture = captures(config.compile, processes.device)
        step = Step(config, state, rates_at, capture, plan)
        evaluator = Evaluator(config, processes, state, step.memory_pool, builds_networks=splits is not None)
        clock = Clock(processes.device, state.clock, is_steady=lambda: step.settled)
        console = console or TrainingConsole(enabled=False)
        console.begin(plan.total_steps, state.step)
        return cls(config, processes, splits, loaders, plan, state, step, evaluator, clock, console)

    def write_to(self, run: RunFolder) -> None:
        """Write metrics and checkpoints into a run folder, and to trackers, from now on. Call this on rank 0.

        The records of steps after the one that the run continues from are removed from metrics.jsonl.
        """
        self.run = run
        self.checkpoints = CheckpointWriter(run.checkpoints, hash_of_run(run.config))
        self.metrics = MetricsLog(run, self.state.step)
        on_cpu = self.processes.device.type == "cpu"
        self.trackers = Trackers(
            self.config, run, on_cpu, self.state.step, self.console.say, lambda: self.stop.requested
        )

    # --- the loop -------------------------------------------------------------------------------------------

    def fit(self) -> EvalResult:
        """Train from `state.step` to the end of the plan.

        Returns:
            The evaluation on the test set at the last step.

        Raises:
            TrainingError: the loss is not finite, or too many updates in a row were skipped.
            Preempted: a signal asked to stop; a checkpoint of this very step has been saved.
        """
        evaluation = None
        self.timeline.begin("compile")
        self.clock.open()
        for batch in self.clock.timed(self._batches_left()):
            self._before_step(batch)
            self.step(batch)
            due, stops = self._after_step()
            if due.any or stops or self.clock.warming_up:
                with self.clock.pause() as window:
                    self._note_warmup()
                    evaluation = self._do(due, stops, window)
            self._watch_at(f"waiting for the batch of step {self.state.step + 1}")
        # no step is left of a run that is continued from its last one; an uninterrupted plan evaluates here
        if evaluation is None:
            with self.timeline.within("evaluation"):
                evaluation = self.evaluate_weights(self.loaders.test)
        return evaluation

    def _note_warmup(self) -> None:
        """Tell the timeline of a capture, and of the end of warm-up; the device has been waited for."""
        self.timeline.move(self.step.take_capture_s(), "compile", "capture")
        if not self.step.settled:
            return
        self.timeline.begin("training")
        if self.when_settled is not None:
            self.when_settled()
            self.when_settled = None

    def _batches_left(self) -> Iterator[Batch]:
        first = self.state.step
        return islice(self.loaders.train.batches_from(first), self.plan.total_steps - first)

    def _before_step(self, batch: Batch) -> None:
        """Expect compiling if the images have a new size, or a phase begins."""
        step = self.state.step
        if self.step.settled and self.step.is_new(batch):
            self.clock.begin_warmup()
            self.timeline.begin("compile")
            self.console.say(f"step {step}: {self.step.describe_new(batch)}")
        self._watch_at(f"in step {step + 1}")

    def _after_step(self) -> tuple[Due, bool]:
        """Count the step. Return what is due now, and True if the run stops here."""
        self.clock.step(self.config.data.batch_size)
        if self.profiler is not None and self.profiler.after_step(self.step.settled):
            self.clock.exclude_window()
        self.console.step(self.state.step)
        return self.plan.due(self.state.step), self.stop.due(self.state.step)

    def _do(self, due: Due, stops: bool, window: Window | None) -> EvalResult | None:
        """Do what is due, between two windows: log, evaluate, save, stop."""
        evaluation, step = None, self.state.step
        if due.log:
            self.log_window(window)
        if due.evaluate:
            with self.timeline.within("evaluation"):
                evaluation = self.evaluate_all()
            compile_s, capture_s = self.evaluator.take_warmup_s()
            self.timeline.move(compile_s, "evaluation", "compile")
            self.timeline.move(capture_s, "evaluation", "capture")
        if due.save or stops or (due.evaluate and self.evaluator.is_best):
            with self.timeline.within("saving"):
                self.save()
        if stops and step < self.plan.total_steps:
            cause = name_of(self.stop.number) if self.stop.requested else "a signal to another process"
            command = same_command("resume=auto") or "resume=auto"
            raise Preempted(f"by {cause}, saved at step {step}; continue with {command}")
        return evaluation

    def _watch_at(self, place: str) -> None:
        if self.watch is not None:
            self.watch.at(place)

    # --- logging --------------------------------------------------------------------------------------------

    def log_window(self, window: Window | None) -> None:
        """Read the sums of the open window off the device, check and record them."""
        record = read_window(self.state, self.processes, self.config, self.plan, window)
        self.state.last_train = record
        self.console.train(record)
        self._write(record)
        if self.checkpoints is not None:
            self.checkpoints.check()

    def _write(self, record: TrainRecord | EvalRecord) -> None:
        if self.metrics is not None:
            self.metrics.write(record)
        if self.trackers is not None:
            self.trackers.write(record)

    # --- evaluation -----------------------------------------------------------------------------------------

    def evaluate_all(self) -> EvalResult:
        """Evaluate on the holdout and the test set, record both, and remember the best; return the test set's
        result."""
        self._watch_at(f"in the evaluation after step {self.state.step}")
        self.evaluator.average_norms()
        if self.loaders.holdout is not None:
            self._record("holdout", self.evaluate_weights(self.loaders.holdout))
        result = self.evaluate_weights(self.loaders.test)
        self._record("test", result)
        return result

    def evaluate_weights(self, loader: Loader) -> EvalResult:
        """Evaluate the weights and, if there is a moving average of them, the average too."""
        return self.evaluator.evaluate(loader)

    def _record(self, split: Split, result: EvalResult) -> None:
        epoch, has_holdout = self.plan.epoch(self.state.step), self.loaders.holdout is not None
        record = self.evaluator.record(split, result, epoch, has_holdout)
        last_train = self.state.last_train if split == "test" else None
        self.console.evaluated(last_train, record, self.plan.num_epochs)
        self._write(record)

    # --- saving ---------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Checkpoint this step: every process takes part in averaging and summing, rank 0 writes.

        Raises:
            TrainingError: the state holds numbers that are not finite, or the checkpoint before could not be
                written.
        """
        state = self.state
        self._watch_at(f"saving step {state.step}")
        self.evaluator.average_norms()
        self.processes.sum(state.totals.values[:3])
        if not self.processes.is_main:  # rank 0 holds the sums of all now
            state.totals.start_window()
        check_weights(state, self.config, self.plan)
        state.clock = self.clock.state_dict()
        if self.checkpoints is not None:
            self.checkpoints.wait()  # before the copy, so that a GPU never holds two
            self.checkpoints.save(state.snapshot())
            if self.stop.requested:  # another signal ends the process at once
                self.checkpoints.wait()
        if self.trackers is not None:
            self.trackers.flush()  # beside the write, which takes longer unless a tracker hangs

    def close(self) -> None:
        """Close console, profiler, metrics and checkpoints, each even if another one fails.

        After it all snapshots are on disk. The trackers stay open for the figures and pictures of the end.
        """
        with contextlib.ExitStack() as closing:
            if self.trackers is not None:
                closing.callback(self.trackers.flush)
            for part in (self.console, self.profiler, self.metrics, self.checkpoints):
                if part is not None:
                    closing.callback(part.close)


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work on a stream of its own on a GPU: a captured step must not run on the default stream. Nothing on
    the CPU."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield
    outer.wait_stream(stream)  # not after an error: on a broken GPU it would hide the reason


def _given(splits: Splits | None) -> Splits:
    assert splits is not None, "splits may be left out only with a model and loaders"
    return splits


def _resume(state: TrainState, folder: Path, processes: Processes) -> None:
    """Restore the checkpoint that the run continues from."""
    processes.main_first(lambda: load_checkpoint(folder, state))  # a host without that folder stops all
    if not processes.is_main:  # the sums of the open log window were saved for all processes together
        state.totals.start_window()
