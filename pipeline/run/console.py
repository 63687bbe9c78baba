"""What a run says on the terminal: one line an epoch, a progress bar where there is a terminal, plain lines where there is none."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

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

# Accuracies that are not of the raw weights with one view per image, and what they are called wherever they are printed.
OTHER_ACCURACIES = {
    "accuracy_flip_tta": "with flip",
    "ema_accuracy": "ema",
    "ema_accuracy_flip_tta": "ema with flip",
}


class TrainingConsole:
    """Progress of a run. A disabled one (any process but rank 0) says nothing.

    Where nobody reads any more, because the terminal has hung up or `| tee` is gone, it falls silent, and the run goes on.

    Args:
        total_steps: length of the run.
        start_step: where it begins.
        enabled: rank 0.
    """

    def __init__(self, total_steps: int, start_step: int = 0, enabled: bool = True):
        self._console = Console(quiet=not enabled, soft_wrap=True, highlight=False)
        self._total, self._last_step, self._last_time = (
            total_steps,
            start_step,
            time.perf_counter(),
        )  # of the last line
        self._progress: Progress | None = None
        if enabled and sys.stdout.isatty():
            columns = (
                SpinnerColumn(),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(
                "compiling and warming up", total=total_steps, completed=start_step
            )
            self._progress.start()

    def say(self, text: str) -> None:
        with self._silent_where_unheard():
            self._console.print(text, markup=False)

    @contextlib.contextmanager
    def _silent_where_unheard(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SystemExit):  # rich ends the program where a pipe is broken
            self._console.quiet = True
            silence(sys.stdout)

    def step(self, step: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def train(self, record: dict[str, Any]) -> None:
        if self._progress is not None:
            speed = record["images_per_sec"]
            rate = f"{speed:,.0f} img/s  {record['steps_per_sec']:.1f} it/s" if speed else "warming up"
            fit = (
                "all skipped"
                if record["loss"] is None
                else f"loss {record['loss']:.3f}  acc {record['accuracy']:.2%}"
            )
            self._progress.update(self._task, description=f"{fit}  lr {record['lr']:.4f}  {rate}")

    def evaluated(self, train: dict[str, Any] | None, evaluation: dict[str, Any], num_epochs: float) -> None:
        """The line of an epoch."""
        step = evaluation["step"]
        parts = [f"epoch {evaluation['epoch']:6.2f}/{round(num_epochs, 2):g}"]
        if train is not None:
            speed = (
                f"{train['images_per_sec']:9,.0f} img/s {train['steps_per_sec']:6.1f} it/s"
                if train["images_per_sec"]
                else "warm-up"
            )
            fit = (
                "all skipped"
                if train["loss"] is None
                else f"loss {train['loss']:.4f} acc {train['accuracy']:7.2%}"
            )
            parts.append(f"lr {train['lr']:.5f}  train {fit}  {speed}")
            if train["skipped_steps"]:
                parts.append(f"scale {train['loss_scale']:g} skipped {train['skipped_steps']}")
        split, correct, seen = evaluation["split"], evaluation["correct"], evaluation["seen"]
        parts.append(
            f"{split} loss {evaluation['loss']:.4f} acc {evaluation['accuracy']:7.2%} ({correct}/{seen})"
        )
        parts += [
            f"{name} {evaluation[key]:.2%}" for key, name in OTHER_ACCURACIES.items() if key in evaluation
        ]
        now = time.perf_counter()
        left = (now - self._last_time) / max(step - self._last_step, 1) * (self._total - step)
        self._last_step, self._last_time = step, now
        parts.append(f"left {int(left // 60)}:{int(left % 60):02d}")
        self.say("  ".join(parts))

    def close(self) -> None:
        if self._progress is not None:
            with self._silent_where_unheard():
                self._progress.stop()
