"""Train a recipe with lists of overrides: `python -m benchmarks sweep FILE [key=value …]`.

Everything is checked before the first run. Finished runs are kept: the same command again goes on where the last one stopped,
and trains anew only what has failed or changed.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from benchmarks.measure.options import check_at_least
from benchmarks.publish.tables import to_rich
from benchmarks.sweep.plan import Plan, Run, read_plan
from benchmarks.sweep.table import (
    Mean,
    Outcome,
    find_finished,
    jobs_before,
    save,
    table_of,
    values_of,
    with_status,
)
from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED

_POLL_S = 0.1
_PLAIN_WIDTH = 160
_ROOT = Path(__file__).parents[2]


def _trainer(run: Run, base: str, processes: int) -> list[str]:
    if processes > 1:  # launch.sh passes signals on to all processes, and returns the trainer's exit code
        return [str(_ROOT / "launch.sh"), "train", base, *run.overrides]
    return [sys.executable, "-m", "pipeline.train", base, *run.overrides]


@dataclass
class Sweep:
    """A plan being carried out.

    Attributes:
        jobs: runs at a time.
        processes: of each run.
        command: makes a run's command line from run, base recipe and processes.
        outcomes: one for each run of the plan, in its order.
    """

    plan: Plan
    jobs: int = 1
    processes: int = 1
    command: Callable[[Run, str, int], list[str]] = _trainer
    outcomes: list[Outcome] = field(default_factory=list)
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _signals: int = 0

    def __post_init__(self) -> None:
        jobs = jobs_before(self.plan)
        found = [find_finished(self.plan, run) for run in self.plan.runs]
        self.outcomes = [replace(outcome, jobs=jobs.get(str(outcome.folder), 1)) for outcome in found]

    def log_of(self, run: Run) -> Path:
        return self.plan.folder / "logs" / f"{run.key}.log"

    def carry_out(self, progress: Callable[[], None], finished: Callable[[Outcome], None]) -> None:
        """Train what is not finished.

        Args:
            progress: called again and again while runs are going.
            finished: called with the outcome of each run as it ends.
        """
        waiting = [index for index, outcome in enumerate(self.outcomes) if outcome.status == "waiting"]
        with self._signals_handled():
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs and not self._signals:
                    self._start(waiting.pop(0))
                for index in [
                    index for index, process in self._running.items() if process.poll() is not None
                ]:
                    self._end(index)
                    save(self.plan, self.outcomes)
                    finished(self.outcomes[index])
                if self._signals and not self._running:
                    break
                progress()
                time.sleep(_POLL_S)
        save(self.plan, self.outcomes)

    def _start(self, index: int) -> None:
        run = self.plan.runs[index]
        log = self.log_of(run)
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = max(len(os.sched_getaffinity(0)) // self.jobs, 1)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "NUM_PROCESSES": str(self.processes),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as file:
            # a session of its own: Ctrl-C reaches this process alone, which passes it on once
            self._running[index] = subprocess.Popen(
                self.command(run, self.plan.base, self.processes),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self.outcomes[index] = replace(with_status(self.outcomes[index], "running"), jobs=self.jobs)

    def _end(self, index: int) -> None:
        code = self._running.pop(index).returncode
        outcome = find_finished(self.plan, self.plan.runs[index])
        if outcome.status != "done" or code:
            stopped = self._signals or code == EXIT_PREEMPTED
            outcome = with_status(
                outcome,
                "stopped" if stopped else "failed",
                f"exit code {code}: {last_words(self.log_of(outcome.run))}",
            )
        self.outcomes[index] = replace(outcome, jobs=self.jobs)

    @contextmanager
    def _signals_handled(self) -> Iterator[None]:
        """The first signal asks the runs to save a checkpoint and stop, a second one kills them."""

        def stop(number: int, frame: Any) -> None:
            self._signals += 1
            for process in self._running.values():
                # the group: launch.sh, or the trainer itself; one that has ended just now is no longer there
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        return self._signals > 0


def last_words(log: Path) -> str:
    """The error that a log ends with, or its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]


def run_sweep(sweep: Sweep, console: Console) -> int:
    """Carry out a sweep, telling on the console; the exit code."""
    total = len(sweep.outcomes)

    def number_of(*statuses: str) -> int:
        return sum(outcome.status in statuses for outcome in sweep.outcomes)

    kept = number_of("done")
    console.print(
        f"{sweep.plan.name}: {total} runs of {sweep.plan.base}, {kept} finished before; folder {sweep.plan.folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    started = time.perf_counter()
    if console.is_terminal and kept < total:
        with Live(console=console, refresh_per_second=4, transient=True) as live:

            def progress() -> None:
                ended = number_of("done", "failed", "stopped")
                elapsed = time.perf_counter() - started
                left = (
                    f", about {elapsed / (ended - kept) * (total - ended) / 60:.0f} min left"
                    if ended > kept
                    else ""
                )
                lines = [
                    f"{o.run.name} seed {o.run.seed}: {last_words(sweep.log_of(o.run))}"
                    for o in sweep.outcomes
                    if o.status == "running"
                ]
                status = Text(
                    "\n".join([f"{ended}/{total} runs ended{left}", *lines]),
                    no_wrap=True,
                    overflow="ellipsis",
                )
                live.update(Group(to_rich(table_of(sweep.plan, sweep.outcomes)), status))

            sweep.carry_out(
                progress, lambda outcome: console.print(line_of(outcome), markup=False, highlight=False)
            )
    else:
        sweep.carry_out(
            lambda: None,
            lambda outcome: console.print(line_of(outcome), markup=False, highlight=False, soft_wrap=True),
        )
    console.print(to_rich(table_of(sweep.plan, sweep.outcomes)))
    console.print(
        f"saved: {save(sweep.plan, sweep.outcomes)} and results.json",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if sweep.interrupted:
        console.print("stopped; the same command goes on from here")
        return EXIT_PREEMPTED
    return EXIT_FAILURE if number_of("failed", "stopped") else 0


def line_of(outcome: Outcome) -> str:
    """One line about a run that has ended."""
    name = f"{outcome.run.name} seed {outcome.run.seed}"
    if outcome.status != "done":
        return f"{name}: {outcome.status}, {outcome.reason}"
    figures = {key: values_of([outcome], key) for key in ("test_accuracy", "images_per_sec", "train_s")}
    accuracy, speed, seconds = (Mean.of(values) for values in figures.values())
    parts = [
        f"{accuracy.mean:.2%}" if accuracy else "",
        f"{speed.mean:,.0f} img/s" if speed else "",
        f"{seconds.mean:.1f} s" if seconds else "",
    ]
    return f"{name}: {', '.join(part for part in parts if part)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep; exit code 0 when all runs are done, 1 where one failed, 2 for a bad sweep file, 75 when stopped by a signal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep", description=__doc__)
    parser.add_argument("file", type=Path, help="sweep, such as configs/sweeps/label_smoothing.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="keys put over every run, such as duration=2ep",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time (default: 1); their speeds are then not those of one alone",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes, and GPUs, of each run (default: 1)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything and show the plan, train nothing"
    )
    arguments = parser.parse_intermixed_args(argv)
    check_at_least(1, arguments, "jobs", "processes")
    sweep = Sweep(read_plan(arguments.file, arguments.overrides), arguments.jobs, arguments.processes)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if arguments.dry_run:
        console.print(to_rich(table_of(sweep.plan, sweep.outcomes)))
        return 0
    return run_sweep(sweep, console)
