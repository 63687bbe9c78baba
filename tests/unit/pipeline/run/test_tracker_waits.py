"""Waits for trackers: each has an end, is told once it is long, and a signal ends it."""

import contextlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import train
from pipeline.process.signals import StopSignal
from pipeline.run import trackers
from pipeline.run.folder import RunFolder
from pipeline.run.tracker_kinds import KINDS
from pipeline.run.trackers import Patience, Tracker, Trackers
from tests.patience import PATIENCE_S
from tests.tiny import RECIPE, a_train_record, only_run, tiny_config
from tests.trackers import MARKS, local_stores, open_trackers, scalars  # noqa: F401

pytestmark = MARKS


def test_a_tracker_that_hangs_is_left_behind():
    hang = threading.Event()
    tracker = Tracker("wandb", lambda: hang.wait(30))
    for _ in range(3):
        tracker.do(lambda _: None)
    assert not tracker.wait(Patience(0.05))
    tracker.end(Patience(0.05))
    assert "did not finish" in tracker.problem
    hang.set()


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let trackers start at this event only, and the line of a wait come soon."""
    event = threading.Event()
    monkeypatch.setattr(trackers, "_start", lambda *_: event.wait(30))
    monkeypatch.setattr(trackers, "_QUIET_S", 0.1)
    yield event
    event.set()


@pytest.mark.parametrize(
    ("failed", "limit", "seconds"), [(False, "_CLOSE_S", "0.5 s"), (True, "_CLOSE_FAILED_S", "0.25 s")]
)
def test_a_long_wait_for_a_tracker_is_told_once(
    failed: bool,
    limit: str,
    seconds: str,
    tmp_path: Path,
    hang: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(trackers, limit, float(seconds.removesuffix(" s")))
    said: list[str] = []
    opened = open_trackers(tmp_path, "mlflow", said=said)
    opened.write(a_train_record(2))
    opened.close(failed=failed)
    line, warning = said
    assert all(part in line for part in ("mlflow has not taken all records", seconds, "Ctrl-C ends the wait"))
    assert f"did not finish within {seconds}" in warning


def test_a_long_flush_is_told_once(tmp_path: Path, hang: threading.Event, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "_FLUSH_S", 0.4)
    said: list[str] = []
    opened = open_trackers(tmp_path, "tensorboard", said=said)
    opened.write(a_train_record(2))
    opened.flush()
    line, warning = said
    assert all(part in line for part in ("tensorboard", "0.4 s", "Ctrl-C ends the wait and the run"))
    assert "did not finish within 0.4 s" in warning


def test_a_flush_after_a_signal_is_short_and_asks_for_no_other(
    tmp_path: Path, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    """A second Ctrl-C would end the run before it is saved."""
    written: list[bool] = []

    def stop_at_once(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def flush(self: Trackers, flush: Callable[[Trackers], None] = Trackers.flush) -> None:
        written.append(any((only_run(tmp_path) / "checkpoints").glob("step-*/manifest.json")))
        flush(self)

    monkeypatch.setattr("pipeline.run.metrics_log.MetricsLog.write", stop_at_once)
    monkeypatch.setattr(Trackers, "flush", flush)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train.main([str(RECIPE), f"log.dir={tmp_path}", "log.trackers=[tensorboard]"]) == 75
    assert written and all(written)
    assert "did not finish within 0.1 s" in printed.getvalue() and "Ctrl-C" not in printed.getvalue()


def test_a_signal_at_the_begin_of_a_long_wait_is_not_asked_for(tmp_path: Path, hang: threading.Event):
    asked, said = iter([False, False]), list[str]()
    config = tiny_config("log.trackers=[tensorboard]")
    opened = Trackers(config, RunFolder(tmp_path), True, 0, said.append, lambda: next(asked, True))
    opened.write(a_train_record(2))
    opened.flush()
    (warning,) = said
    assert "a signal ended the wait" in warning


def test_a_signal_in_a_short_wait_loses_no_records(tmp_path: Path):
    asked, said = iter([False]), list[str]()
    config = tiny_config("log.trackers=[tensorboard]")
    opened = Trackers(config, RunFolder(tmp_path), True, 0, said.append, lambda: next(asked, True))
    opened.write(a_train_record(2))
    opened.close()
    assert said == [] and scalars(tmp_path)["train/loss"] == [(2, 0.5)]


def test_all_trackers_end_during_the_same_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first one hangs until the second one has finished."""
    finished, said = threading.Event(), list[str]()

    def start(_: object, name: str, *__: object) -> None:
        assert name == "trackio" or finished.wait(PATIENCE_S)

    monkeypatch.setattr(trackers, "_start", start)
    monkeypatch.setattr(trackers, "_log", lambda *_: None)
    for kind in ("mlflow", "trackio"):
        monkeypatch.setattr(KINDS[kind], "finish", lambda *_: finished.set())
    opened = open_trackers(tmp_path, "mlflow", "trackio", said=said)
    opened.write(a_train_record(2))
    opened.close()
    assert said == [] and opened.working == ["mlflow", "trackio"]


def test_one_that_hangs_takes_no_other_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one finishes while the first is waited for; after that wait there is no time left."""
    hang, said = threading.Event(), list[str]()
    monkeypatch.setattr(trackers, "_start", lambda _, name, *__: name == "trackio" or hang.wait(PATIENCE_S))
    monkeypatch.setattr(trackers, "_log", lambda *_: None)
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.5)
    monkeypatch.setattr(KINDS["trackio"], "finish", lambda *_: None)
    opened = open_trackers(tmp_path, "mlflow", "trackio", said=said)
    opened.write(a_train_record(2))
    opened.close()
    hang.set()
    (warning,) = said
    assert "mlflow" in warning and opened.working == ["trackio"]


def test_a_wait_that_began_before_has_less_left():
    assert not Patience(60.0, begun=time.monotonic() - 30.0).is_over()
    patience = Patience(60.0, begun=time.monotonic() - 61.0)
    assert patience.is_over() and patience.reason == "it did not finish within 60 s"


@pytest.mark.parametrize("stopped_before", [False, True])
def test_a_signal_ends_the_wait_for_all_trackers(
    stopped_before: bool, tmp_path: Path, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    """One that came before the wait does not: trackers hear of the end of a run that is stopped."""
    monkeypatch.setattr(trackers, "_CLOSE_S", 0.5 if stopped_before else 30.0)
    stop, said = StopSignal(), list[str]()
    stop.requested = stopped_before

    def say(text: str) -> None:
        said.append(text)
        stop.requested = True

    config = tiny_config("log.trackers=[mlflow,trackio]", "resume=none")
    opened = Trackers(config, RunFolder(tmp_path), True, 0, say, lambda: stop.requested)
    opened.write(a_train_record(2))
    begun = time.monotonic()
    opened.close()
    assert time.monotonic() - begun < 10
    assert any("Ctrl-C" in line for line in said) != stopped_before
    reason = "within 0.5 s" if stopped_before else "a signal ended the wait"
    assert len([line for line in said if reason in line]) == 2
