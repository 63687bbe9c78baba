"""Train a recipe with lists of overrides: `python -m benchmarks sweep FILE [key=value …]`.

Everything is checked before the first run. Finished runs are kept: the same command again continues where the
last one stopped, and trains only the runs that failed or changed.
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
from types import FrameType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from benchmarks.measure.options import check_at_least
from benchmarks.publish.columns import to_rich
from benchmarks.sweep.plan import Plan, Run, read_plan
from benchmarks.sweep.table import (
    Outcome,
    Scores,
    Status,
    differences_table,
    find_finished,
    read_jobs,
    save,
    table_of,
)
from pipeline.errors import EXIT_FAILURE, EXIT_PREEMPTED
from pipeline.process.cores import share_of_cores

_ABOUT = (
    "Train a recipe with lists of overrides. Everything is checked before the first run. The same "
    "command again continues where the last one stopped."
)
_POLL_S = 0.1
_PLAIN_WIDTH = 160  # columns of a table without a terminal
_ROOT = Path(__file__).parents[2]


def _training_command(run: Run, base: str, processes: int) -> list[str]:
    if processes > 1:  # launch.sh passes signals on to all processes, and returns the trainer's exit code
        return [str(_ROOT / "launch.sh"), "train", base, *run.overrides]
    return [sys.executable, "-m", "pipeline.train", base, *run.overrides]


@dataclass
class Sweep:
    """A plan and the state of its runs.

    Attributes:
        jobs: runs at a time.
        processes: of each run.
        command: makes a run's command line from run, base recipe and processes.
        outcomes: one for each run of the plan, in its order.
    """

    plan: Plan
    jobs: int = 1
    processes: int = 1
    command: Callable[[Run, str, int], list[str]] = _training_command
    outcomes: list[Outcome] = field(default_factory=list)
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _signals: int = 0

    def __post_init__(self) -> None:
        jobs = read_jobs(self.plan)
        outcomes = [find_finished(self.plan, run) for run in self.plan.runs]
        self.outcomes = [replace(outcome, jobs=jobs.get(str(outcome.folder), 1)) for outcome in outcomes]

    @property
    def interrupted(self) -> bool:
        return self._signals > 0

    def count(self, *statuses: Status) -> int:
        """Return the number of runs in one of these states."""
        return sum(outcome.status in statuses for outcome in self.outcomes)

    def log_of(self, run: Run) -> Path:
        return self.plan.folder / "logs" / f"{run.key}.log"

    def carry_out(self, progress: Callable[[], None], finished: Callable[[Outcome], None]) -> None:
        """Train the runs that are not finished.

        Args:
            progress: called again and again while runs are training.
            finished: called with the outcome of each run as it ends.
        """
        waiting = [index for index, outcome in enumerate(self.outcomes) if outcome.status == "waiting"]
        with self._signals_handled():
            while waiting or self._running:
                while waiting and len(self._running) < self.jobs and not self._signals:
                    self._start(waiting.pop(0))
                ended = [i for i, process in self._running.items() if process.poll() is not None]
                for index in ended:
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
        threads = share_of_cores(self.jobs)
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "NUM_PROCESSES": str(self.processes),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as file:
            # a new session: Ctrl-C reaches this process alone, which passes it on once
            self._running[index] = subprocess.Popen(
                self.command(run, self.plan.base, self.processes),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        self.outcomes[index] = replace(self.outcomes[index].with_status("running"), jobs=self.jobs)

    def _end(self, index: int) -> None:
        code = self._running.pop(index).returncode
        outcome = find_finished(self.plan, self.plan.runs[index])
        if outcome.status != "done" or code:
            stopped = self._signals or code == EXIT_PREEMPTED
            reason = f"exit code {code}: {last_error(self.log_of(outcome.run))}"
            outcome = outcome.with_status("stopped" if stopped else "failed", reason)
        self.outcomes[index] = replace(outcome, jobs=self.jobs)

    @contextmanager
    def _signals_handled(self) -> Iterator[None]:
        """Ask the runs to save a checkpoint and stop at the first signal; kill them at the second."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._signals += 1
            for process in self._running.values():
                # the group: launch.sh, or the trainer itself. A run that has ended just now has no group any
                # more
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM if self._signals == 1 else signal.SIGKILL)

        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, stop) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def last_error(log: Path) -> str:
    """Return the error at the end of a log, or else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-20:] if line.startswith("error:")]
    return (errors or lines or ["no output"])[-1]


def run_sweep(sweep: Sweep, console: Console) -> int:
    """Carry out a sweep, report on the console, and return the exit code."""
    plan, total, done_before = sweep.plan, len(sweep.outcomes), sweep.count("done")

    def report(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def report_run(outcome: Outcome) -> None:
        report(describe_outcome(outcome))

    report(f"{plan.name}: {total} runs of {plan.base}, {done_before} finished before; folder {plan.folder}")
    if console.is_terminal and done_before < total:
        started = time.perf_counter()
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            sweep.carry_out(lambda: live.update(_live_view(sweep, done_before, started)), report_run)
    else:
        sweep.carry_out(lambda: None, report_run)
    console.print(to_rich(table_of(plan, sweep.outcomes)))
    differences = differences_table(sweep.outcomes)
    if differences is not None:
        console.print(to_rich(differences))
    report(f"saved: {save(plan, sweep.outcomes)} and results.json")
    if sweep.interrupted:
        report("stopped; the same command goes on from here")
        return EXIT_PREEMPTED
    return EXIT_FAILURE if sweep.count("failed", "stopped") else 0


def _live_view(sweep: Sweep, done_before: int, started: float) -> Group:
    """Return the table, the estimated time left, and the last log line of each run that is training."""
    total, ended = len(sweep.outcomes), sweep.count("done", "failed", "stopped")
    left = ""
    if ended > done_before:
        seconds_a_run = (time.perf_counter() - started) / (ended - done_before)
        left = f", about {seconds_a_run * (total - ended) / 60:.0f} min left"
    lines = [
        f"{outcome.run.name} seed {outcome.run.seed}: {last_error(sweep.log_of(outcome.run))}"
        for outcome in sweep.outcomes
        if outcome.status == "running"
    ]
    text = "\n".join([f"{ended}/{total} runs ended{left}", *lines])
    status = Text(text, no_wrap=True, overflow="ellipsis")
    return Group(to_rich(table_of(sweep.plan, sweep.outcomes)), status)


def describe_outcome(outcome: Outcome) -> str:
    """Return one line about a run that has ended."""
    name = f"{outcome.run.name} seed {outcome.run.seed}"
    if outcome.status != "done":
        return f"{name}: {outcome.status}, {outcome.reason}"
    scores = Scores.of([outcome])
    parts = [
        f"{scores.accuracy.mean:.2%}" if scores.accuracy else "",
        f"{scores.images_per_sec.mean:,.0f} img/s" if scores.images_per_sec else "",
        f"{scores.train_s.mean:.1f} s" if scores.train_s else "",
    ]
    return f"{name}: {', '.join(part for part in parts if part)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks sweep", description=_ABOUT)
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
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep.

    Returns:
        Exit code: 0 if all runs are done, 1 if one failed, 2 for a bad sweep file, 75 if a signal stopped the
            sweep.
    """
    arguments = _parser().parse_intermixed_args(argv)
    check_at_least(1, arguments, "jobs", "processes")
    sweep = Sweep(read_plan(arguments.file, arguments.overrides), arguments.jobs, arguments.processes)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    if arguments.dry_run:
        console.print(to_rich(table_of(sweep.plan, sweep.outcomes)))
        return 0
    return run_sweep(sweep, console)
