"""What becomes of a run when one of its processes stops, fails, dies or hangs."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from pipeline.checkpoint import folder_of, newest_intact
from tests.integration import scenes
from tests.integration.ranks import Ranks, ranks
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.slow
LONG = ("duration=10000ep", "log.log_every=10000ep", "log.eval_every=10000ep", "log.checkpoint_every=5st", "log.tensorboard=false")


def arguments(folder: Path, *keys: str) -> list[str]:
    return [str(RECIPE), f"log.dir={folder}/runs", "data.batch_size=6", "data.eval_batch_size=6", *LONG, *keys]


def assert_loadable(folder: Path, step: int | None = None) -> None:
    checkpoints = only_run(folder / "runs") / "checkpoints"
    found, damaged = newest_intact(checkpoints)
    assert found is not None and not damaged
    assert step is None or found == folder_of(checkpoints, step)


def assert_stopped(run: Ranks, cause: str) -> None:
    """All at the same step, which is saved, within 10 s."""
    asked = time.monotonic()
    assert run.wait() == [75] * len(run.processes), run.errors
    assert time.monotonic() < asked + 10
    (told,) = run.errors
    found = re.fullmatch(rf"stopped: by {cause}, saved at step (\d+); continue with resume=auto", told)
    assert found is not None, told
    assert run.exit_code == "75"
    assert_loadable(run.folder, int(found[1]))


def test_a_signal_to_all_processes(tmp_path: Path):
    """And its echo, as where a scheduler and the launcher send one each. The next log point is far off."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path)) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        for rank in (0, 1, 1, 0):
            os.kill(run.pid(rank), signal.SIGINT)
        assert_stopped(run, "signal 2")


def test_a_signal_to_one_process_of_three(tmp_path: Path):
    with ranks(tmp_path, 3, scenes.run, arguments(tmp_path), 8, {2: "terminate"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_stopped(run, "a signal to another process")


def assert_failed(run: Ranks, told: str, within_s: float) -> None:
    began = time.monotonic()
    codes = run.wait()
    assert time.monotonic() < began + within_s
    errors = [line for line in run.errors if not line.startswith((" ", "Traceback"))]
    assert len(errors) == 1 and re.fullmatch(told, errors[0]), run.errors
    assert set(codes) <= {1, -signal.SIGKILL} and run.exit_code == "1"
    assert_loadable(run.folder, 5)


def test_an_exception_ends_all_and_is_told_once(tmp_path: Path):
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 8, {1: "fail"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_failed(run, "RuntimeError: a bug on one process", within_s=10)


def test_a_killed_process_ends_all_and_is_named(tmp_path: Path):
    """By name of the process, which had no time for a word of its own; the others know of a connection that broke, no more."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 8, {1: "die"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_failed(
            run, r"error: process 1 gives no sign of life for 4 s, last seen .*\. Killed.* continue with resume=auto", within_s=20
        )


def test_a_hang_ends_all_and_is_named(tmp_path: Path):
    with ranks(tmp_path, 3, scenes.run, arguments(tmp_path, "runtime.hang_timeout_s=2"), 8, {1: "hang"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        told = r"error: process 1 hangs: no progress for 2 s \(runtime\.hang_timeout_s\)\. "
        places = r"process 0: in step 8, .*; process 1: in step 8, at integration/scenes\.py:\d+; process 2: in step 8, "
        assert_failed(run, f"{told}{places}.*", within_s=15)


def test_a_lost_launcher_leaves_no_orphan(tmp_path: Path):
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path)) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        run.end_store()
        assert run.wait(15) == [1, 1]
        last = [run.text(f"err-{rank}").splitlines()[-1] for rank in (0, 1)]  # after torch's own words
        assert all(line.startswith(f"error: process {rank}: lost its launcher") for rank, line in enumerate(last))
