"""Shows a run on the terminal: a line an epoch, and a progress bar if the output is a terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from pipeline.process.exit import silence
from pipeline.run.records import EvalRecord, TrainRecord, loss_text


class TrainingConsole:
    """Shows the progress of a run. A disabled console (on any rank but 0) prints nothing.

    Once nobody reads the output, because the terminal or `| tee` is gone, the console prints nothing, and the
    run continues.

    Args:
        enabled: True on rank 0.
    """

    def __init__(self, enabled: bool = True):
        self._enabled = enabled
        self._console = Console(quiet=not enabled, soft_wrap=True, highlight=False)
        self._total = self._last_step = 0
        self._last_time = time.perf_counter()  # of the last line
        self._progress: Progress | None = None

    def begin(self, total_steps: int, start_step: int = 0) -> None:
        """Show a progress bar from now on, if the output is a terminal."""
        self._total, self._last_step, self._last_time = total_steps, start_step, time.perf_counter()
        if not self._enabled or not sys.stdout.isatty():
            return
        text = TextColumn("{task.description}")
        columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        title = "compiling and warming up"
        self._task = self._progress.add_task(title, total=total_steps, completed=start_step)
        self._progress.start()

    def say(self, text: str) -> None:
        with self._mute_on_broken_pipe():
            self._console.print(text, markup=False)

    @contextlib.contextmanager
    def _mute_on_broken_pipe(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SystemExit):  # rich ends the program when a pipe is broken
            self._console.quiet = True
            silence(sys.stdout)

    def step(self, step: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def train(self, record: TrainRecord) -> None:
        """Show the figures of a window beside the progress bar."""
        if self._progress is not None:
            speed = _speed(record, "{:,.0f} img/s  {:.1f} it/s", "warming up")
            fit = _fit(record, "loss {}  acc {:.2%}", digits=3)
            self._progress.update(self._task, description=f"{fit}  lr {record.lr:.4f}  {speed}")

    def evaluated(self, train: TrainRecord | None, evaluation: EvalRecord, num_epochs: float) -> None:
        """Print the line of an evaluation, with the training before it and the time that is left."""
        parts = [f"epoch {evaluation.epoch:6.2f}/{round(num_epochs, 2):g}"]
        if train is not None:
            speed = _speed(train, "{:9,.0f} img/s {:6.1f} it/s", "warm-up")
            parts.append(f"lr {train.lr:.5f}  train {_fit(train, 'loss {} acc {:7.2%}')}  {speed}")
            if train.skipped_steps:
                parts.append(f"scale {train.loss_scale:g} skipped {train.skipped_steps}")
        counts = f"({evaluation.correct}/{evaluation.seen})"
        loss = loss_text(evaluation.loss)
        parts.append(f"{evaluation.split} loss {loss} acc {evaluation.accuracy:7.2%} {counts}")
        parts += [f"{label} {accuracy:.2%}" for label, accuracy in evaluation.other_accuracies().items()]
        left = self._seconds_left(evaluation.step)
        parts.append(f"left {int(left // 60)}:{int(left % 60):02d}")
        self.say("  ".join(parts))

    def _seconds_left(self, step: int) -> float:
        """Estimate the time left by the pace since the last line."""
        now = time.perf_counter()
        left = (now - self._last_time) / max(step - self._last_step, 1) * (self._total - step)
        self._last_step, self._last_time = step, now
        return left

    def close(self) -> None:
        if self._progress is not None:
            with self._mute_on_broken_pipe():
                self._progress.stop()


def _speed(record: TrainRecord, pattern: str, otherwise: str) -> str:
    """Format images and steps per second; OTHERWISE stands for a window with warm-up steps."""
    return pattern.format(record.images_per_sec, record.steps_per_sec) if record.images_per_sec else otherwise


def _fit(record: TrainRecord, pattern: str, digits: int = 4) -> str:
    if record.loss is None:
        return "all skipped"
    return pattern.format(loss_text(record.loss, digits), record.accuracy)
