"""Sends the config, figures, pictures and report of a run to trackers, which accelerate starts.

Each tracker works in a thread of its own, so that no step waits for a network. One that fails, or does not
keep up, gets nothing more, and the run goes on.
"""

import importlib.util
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import Any

from accelerate import Accelerator

from pipeline.config import Config, flatten
from pipeline.errors import UserError, first_line
from pipeline.run.folder import RunFolder
from pipeline.run.records import EvalRecord, RunResult, TrainRecord
from pipeline.run.tracker_kinds import KINDS, Kind, Saved

_BACKLOG = 10_000  # records that may wait for a tracker
_FLUSH_S = 20.0  # for TensorBoard's files, beside the write of a checkpoint
_CLOSE_S, _CLOSE_FAILED_S = 120.0, 10.0  # for uploads at the end; after a failure the exit code comes first
_QUIET_S = 2.0  # of a wait, before a line tells of it
_NO_FIGURES = ("step", "epoch", "correct", "seen")

Job = Callable[[Any], object]


def check_installed(names: Sequence[str]) -> None:
    """Check that the packages of these trackers are there.

    Raises:
        UserError: names the one that is not, and the remedy.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            others = ", ".join(other for other in names if other != name)
            raise UserError(
                f"log.trackers: the package {name} is not installed; pip install -e '.[{name}]', or leave it "
                f"out: log.trackers=[{others}]"
            )


def wanted(config: Config) -> list[str]:
    """Return the names of the trackers that a config asks for, each once."""
    names = dict.fromkeys(config.log.trackers)
    return [name for name in names if name != "tensorboard" or config.log.tensorboard]


class Patience:
    """Ends a wait for a tracker after some seconds. After 2 s it tells of the wait, and a signal ends it.

    Args:
        seconds: the longest wait, from its start.
        tell: prints the line; called once.
        is_stopped: returns True if a signal came during the wait.
        begun: time on the clock of `time.monotonic`; None for now.

    Attributes:
        reason: why the wait is over; empty until then.
    """

    def __init__(
        self,
        seconds: float,
        tell: Callable[[], object] = lambda: None,
        is_stopped: Callable[[], bool] = lambda: False,
        begun: float | None = None,
    ):
        self.reason = ""
        self._seconds, self._tell, self._is_stopped = seconds, tell, is_stopped
        self._begun, self._told = time.monotonic() if begun is None else begun, False

    def is_over(self) -> bool:
        """Return True if the wait is over; called again and again."""
        waited = time.monotonic() - self._begun
        if waited > self._seconds:
            self.reason = f"it did not finish within {self._seconds:g} s"
        elif waited > _QUIET_S and self._is_stopped():
            self.reason = "a signal ended the wait for it"
        elif waited > _QUIET_S and not self._told:
            self._told = True
            self._tell()
        return bool(self.reason)


class Tracker:
    """One tracker and its thread, which begins with the first job.

    Args:
        name: a key of `KINDS`.
        start: starts the tracker of accelerate; called in the thread.

    Attributes:
        problem: the reason why it gets nothing more; empty while it works.
    """

    def __init__(self, name: str, start: Callable[[], Any]):
        self.name, self.problem = name, ""
        self._ended = False
        self._done = threading.Event()  # the last of the jobs
        self._start = start
        self._jobs: Queue[Job | None] = Queue(_BACKLOG)
        self._thread: threading.Thread | None = None

    def do(self, job: Job) -> None:
        """Let the thread do a job, which gets the tracker of accelerate, after those before it."""
        if self.problem or self._ended:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker-{self.name}", daemon=True)
            self._thread.start()
        try:
            self._jobs.put_nowait(job)
        except Full:
            self.problem = f"{_BACKLOG:,} records wait for it"

    def wait(self, patience: Patience) -> bool:
        """Wait until all jobs so far are done; False if they are not when the patience is over."""
        if self._thread is None or self._ended or self.problem:
            return True
        done = threading.Event()
        self.do(lambda _: done.set())
        return self._wait_for(done, patience)

    def _wait_for(self, done: threading.Event, patience: Patience) -> bool:
        while not done.wait(0.02):
            if self.problem:
                return True
            if patience.is_over():
                return False
        return True

    def finish(self, last: Job) -> None:
        """Let the thread do a last job after the others; one that has had none does not begin with it."""
        if self._thread is not None:
            self.do(last)
            self.do(lambda _: self._done.set())

    def end(self, patience: Patience) -> None:
        """Wait for the last job, and end the thread."""
        if self._thread is not None and not self._ended and not self.problem:
            if not self._wait_for(self._done, patience):
                self.problem = patience.reason
            elif not self.problem:
                self._jobs.put_nowait(None)
                self._thread.join(1.0)
        self._ended = True

    def _work(self) -> None:
        try:
            tracker = self._start()
            while not self.problem and (job := self._jobs.get()) is not None:
                job(tracker)
        except (Exception, SystemExit) as error:  # of other people's code: some end the program
            self.problem = f"{type(error).__name__}: {first_line(error)}"


class Trackers:
    """All trackers of a run, on rank 0.

    Args:
        config: of the run.
        run: the run folder, which also remembers the names that trackers give to the run.
        on_cpu: True if the run computes on the CPU: accelerate checks that it was told the same before.
        resume_step: the step that the run continues from, or 0.
        say: prints a warning.
        is_stopped: returns True after a signal, which ends a wait.
    """

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        on_cpu: bool,
        resume_step: int,
        say: Callable[[str], object],
        is_stopped: Callable[[], bool] = lambda: False,
    ):
        self._say, self._told, self._is_stopped = say, set[str](), is_stopped
        values = {key: value if _is_plain(value) else str(value) for key, value in _values_of(config).items()}
        saved = Saved(run)
        self._trackers: list[Tracker] = []
        for name in wanted(config):
            # accelerate's own set-up runs here, in the main thread; the tracker itself starts in its thread
            accelerator = Accelerator(
                cpu=on_cpu,
                mixed_precision="no",
                dynamo_backend="no",
                log_with=[name],
                project_dir=str(run.path),
            )
            kind = KINDS[name]
            options = partial(kind.options, config, run, saved, resume_step)
            start = partial(_start, accelerator, name, kind, options, config.log.project, values, saved)
            self._trackers.append(Tracker(name, start))

    @property
    def working(self) -> list[str]:
        """Names of the trackers that have not failed."""
        return [tracker.name for tracker in self._trackers if not tracker.problem]

    def write(self, record: TrainRecord | EvalRecord) -> None:
        """Send a record; its figures are named after their set: `train/loss`, `test/accuracy`."""
        group = record.split if isinstance(record, EvalRecord) else record.kind
        self._log(_figures(group, record.to_json()), record.step, [*KINDS])

    def write_result(self, result: RunResult) -> None:
        """Send the figures of result.json as `final/…`. TensorBoard gets its own in HPARAMS."""
        figures = _figures("final", flatten(result.to_json()))
        self._log(figures, result.steps, [name for name in KINDS if name != "tensorboard"])

    def add_pictures(self, pictures: Mapping[str, Path], step: int) -> None:
        """Send pictures and HTML pages by their names; files that are not there are left out."""
        for tracker in self._trackers:
            kind = KINDS[tracker.name]
            for name, path in pictures.items():
                if path.is_file():
                    add = kind.add_page if path.suffix == ".html" else kind.add_picture
                    tracker.do(partial(_call, add, name, path, step))
        self._tell()

    def flush(self) -> None:
        """Bring what TensorBoard was sent into its files, so that it survives a kill. After a signal it gets
        2 s: a second signal in a longer wait would end the run at once."""
        seconds = min(_QUIET_S, _FLUSH_S) if self._is_stopped() else _FLUSH_S
        patience_for = self._patience(seconds, "ends the wait and the run")
        for tracker in self._trackers:
            if tracker.name == "tensorboard" and not tracker.wait(patience := patience_for(tracker)):
                tracker.problem = patience.reason
        self._tell()

    def close(self, *, failed: bool = False) -> None:
        """End all trackers, and wait for their uploads a while: all upload at the same time, in one wait.

        Args:
            failed: the run has not reached its end.
        """
        patience_for = self._patience(_CLOSE_FAILED_S if failed else _CLOSE_S, "ends the wait")
        for tracker in self._trackers:
            tracker.finish(partial(_call, KINDS[tracker.name].finish, failed))
        for tracker in self._trackers:
            tracker.end(patience_for(tracker))
        self._tell()

    def _patience(self, seconds: float, effect: str) -> Callable[[Tracker], Patience]:
        """Return a function that makes the patience with a tracker; all of them count from now. A signal that
        came before ends no wait, and then nobody is asked for another one.

        Args:
            seconds: the longest wait for all trackers.
            effect: what Ctrl-C does meanwhile.
        """
        before, begun = self._is_stopped(), time.monotonic()
        remedy = "" if before else f"; Ctrl-C {effect}"

        def begin(tracker: Tracker) -> Patience:
            left = max(seconds - (time.monotonic() - begun), 0.0)
            left = round(left) if left > 1 else left
            text = (
                f"log.trackers: {tracker.name} has not taken all records yet; the run waits for it at most "
                f"{left:.3g} s{remedy}"
            )
            return Patience(
                seconds, lambda: self._say(text), lambda: self._is_stopped() and not before, begun
            )

        return begin

    def _log(self, figures: Mapping[str, float], step: int, names: Sequence[str]) -> None:
        for tracker in self._trackers:
            if tracker.name in names:
                tracker.do(partial(_call, _log, KINDS[tracker.name], figures, step))
        self._tell()

    def _tell(self) -> None:
        """Print one warning for each tracker that has failed."""
        for tracker in self._trackers:
            if tracker.problem and tracker.name not in self._told:
                self._told.add(tracker.name)
                self._say(
                    f"warning: log.trackers: {tracker.name} gets no more records of this run, which goes on "
                    f"({tracker.problem})"
                )


def _start(
    accelerator: Accelerator,
    name: str,
    kind: Kind,
    options: Callable[[], Mapping[str, Any]],
    project: str,
    values: Mapping[str, Any],
    saved: Saved,
) -> Any:
    """Start a tracker by accelerate, with the config, and return it."""
    config = dict(values) if kind.takes_config(saved) else None
    accelerator.init_trackers(kind.project or project, config, {name: dict(options())})
    tracker = accelerator.get_tracker(name)
    kind.started(tracker, saved)
    return tracker


def _call(work: Callable[..., object], *arguments: Any) -> object:
    """Call a function of a tracker with the tracker, which a job gets last."""
    return work(arguments[-1], *arguments[:-1])


def _log(tracker: Any, kind: Kind, figures: Mapping[str, float], step: int) -> None:
    kind.check()
    tracker.log(dict(figures), step=step)


def _figures(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers, under `group/`."""
    return {
        f"{group}/{key}": value
        for key, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and key not in _NO_FIGURES
    }


def _values_of(config: Config) -> dict[str, Any]:
    return flatten(config.model_dump(mode="json"))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)
