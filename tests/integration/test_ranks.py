"""Stops a run, or lets one of its processes fail, die or hang."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from pipeline.run.checkpoint import folder_of, newest_intact
from tests.gpus import needs_gpus
from tests.integration import scenes
from tests.integration.ranks import Ranks, ranks
from tests.patience import PATIENCE_S
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.slow
LONG = (
    "duration=10000ep",
    "log.log_every=10000ep",
    "log.eval_every=10000ep",
    "log.checkpoint_every=5st",
    "log.tensorboard=false",
)


def arguments(folder: Path, *keys: str) -> list[str]:
    values = {"data.batch_size": "6", "data.eval_batch_size": "6"} | dict(key.split("=") for key in keys)
    overrides = [f"{key}={value}" for key, value in values.items()]
    return [str(RECIPE), f"log.dir={folder}/runs", *LONG, *overrides]


def assert_loadable(folder: Path, step: int | None = None) -> None:
    checkpoints = only_run(folder / "runs") / "checkpoints"
    newest, damaged = newest_intact(checkpoints)
    assert newest is not None and not damaged
    assert step is None or newest == folder_of(checkpoints, step)


def assert_stopped(run: Ranks, cause: str) -> None:
    """Every process stops at the same step, which is saved."""
    assert run.wait() == [75] * len(run.processes), run.errors
    (message,) = run.errors
    match = re.fullmatch(rf"stopped: by {cause}, saved at step (\d+); .*resume=auto", message)
    assert match is not None, message
    assert run.exit_code == 75
    assert_loadable(run.folder, int(match[1]))


def test_a_signal_to_all_processes(tmp_path: Path):
    """Each process gets two, as if scheduler and launcher sent one each. The next log point is far off."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path)) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        for rank in (0, 1, 1, 0):
            os.kill(run.pid(rank), signal.SIGINT)
        assert_stopped(run, "SIGINT")


def test_a_signal_to_one_process_of_three(tmp_path: Path):
    with ranks(tmp_path, 3, scenes.run, arguments(tmp_path), 8, {2: "terminate"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_stopped(run, "a signal to another process")


def test_a_signal_before_the_first_step_ends_at_once(tmp_path: Path):
    """Such as while the network compiles: nothing is lost."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 1, {0: "terminate", 1: "terminate"}) as run:
        assert run.wait() == [75, 128 + signal.SIGTERM] and run.exit_code == 75
        (message,) = run.errors
        assert re.fullmatch("stopped: by SIGTERM before the first step; .*resume=auto", message)


def test_a_second_signal_ends_at_once(tmp_path: Path):
    """Also if the main thread of a process waits for another one, and runs no handler."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 8, {1: "hang"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        run.wait_for("hanging")
        os.kill(run.pid(0), signal.SIGTERM)
        time.sleep(2.5)  # within 2 s a signal counts as the echo of the first
        assert run.processes[0].is_alive()
        os.kill(run.pid(0), signal.SIGTERM)
        run.processes[0].join(PATIENCE_S)
        assert run.processes[0].exitcode == 128 + signal.SIGTERM


def test_bad_input_is_reported_once(tmp_path: Path):
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path, "data.batch_size=9")) as run:
        assert run.wait() == [2, 2] and run.exit_code == 2
        (message,) = run.errors
        assert re.fullmatch("error: data.batch_size: .*9 .*2 processes.*data.batch_size=8 or 10", message)
        assert not (tmp_path / "runs").exists()


def assert_failed(run: Ranks, message: str, *, traceback: bool = False) -> None:
    """One message stands on stderr; that of a bug is the last line of its traceback."""
    codes = run.wait()
    errors = run.errors
    if traceback:
        assert errors[0] == "Traceback (most recent call last):", errors
        assert all(line.startswith("  ") for line in errors[1:-1]), errors
        errors = errors[-1:]
    assert len(errors) == 1 and re.fullmatch(message, errors[0]), run.errors
    assert set(codes) <= {1, -signal.SIGKILL} and run.exit_code == 1
    assert_loadable(run.folder)


def test_an_exception_ends_all_and_is_reported_once(tmp_path: Path):
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 8, {1: "fail"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_failed(run, "RuntimeError: a bug on one process", traceback=True)


def test_a_killed_process_ends_all_and_is_named(tmp_path: Path):
    """The killed process cannot report it, and the others see a broken connection."""
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path), 8, {1: "die"}) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        assert_failed(
            run,
            r"error: process 1 has not responded for 4 s \(last seen .*\).*killed.*resume=auto",
        )


def test_a_hang_ends_all_and_is_named(tmp_path: Path):
    with ranks(
        tmp_path, 3, scenes.run, arguments(tmp_path, "runtime.hang_timeout_s=2"), 8, {1: "hang"}
    ) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        hang = r"error: process 1 hangs: .* 2 s \(runtime\.hang_timeout_s\).*"
        places = ("0: in step 8, .*", r"1: in step 8, at integration/scenes\.py:\d+", "2: in step 8, .*")
        assert_failed(run, hang + "; ".join(f"process {place}" for place in places))


def test_a_lost_launcher_leaves_no_orphan(tmp_path: Path):
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path)) as run:
        run.wait_for("runs/*/checkpoints/step-*")
        run.end_store()
        assert run.wait() == [1, 1]
        last = [run.text(f"err-{rank}").splitlines()[-1] for rank in (0, 1)]  # after torch's messages
        for rank, line in enumerate(last):
            assert line.startswith(f"error: process {rank}: lost its launcher")


# --- on GPUs: NCCL waits for a process that is gone, while gloo raises an error -------------------------

SCENES = {
    "terminate": (75, r"stopped: by a signal to another process, saved at step \d+; .*resume=auto"),
    "fail": (1, "RuntimeError: a bug on one process"),
    "die": (1, "error: process 1 has not responded for .*"),
    "hang": (1, "error: process 1 hangs: .* 60 s .*"),  # longer than compiling takes
}


@needs_gpus(2)
@pytest.mark.parametrize("act", SCENES)
@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_on_two_gpus(act: str, mode: str, tmp_path: Path):
    """With eager steps, and with captured steps, which the host enqueues up to eight ahead."""
    code, message = SCENES[act]
    keys = (
        "runtime.device=gpu",
        "precision.mode=fp16",
        f"compile.mode={mode}",
        "data.image_size=32",
        "runtime.hang_timeout_s=60",
    )
    with ranks(tmp_path, 2, scenes.run, arguments(tmp_path, *keys), 53, {1: act}) as run:
        run.wait_for("runs/*/checkpoints/step-00000050", limit_s=240)
        codes = run.wait()
        assert None not in codes, f"still running: {codes}, {run.errors}"
        assert run.exit_code == code
        assert any(re.fullmatch(message, line) for line in run.errors)
        assert sum(line.startswith("error: ") for line in run.errors) <= 1
        assert_loadable(tmp_path)
