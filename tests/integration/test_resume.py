"""On the CPU, a run that is interrupted and continued equals bit for bit one that is not interrupted."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline import train
from pipeline.process.signals import StopSignal
from pipeline.run.checkpoint import folder_of, newest_intact
from pipeline.training.step import Step, StepOutput
from tests.gpus import needs_gpu
from tests.integration.scenes import watched_steps
from tests.patience import PATIENCE_S
from tests.python import ROOT, run_python
from tests.tiny import RECIPE, assert_equal, last_ema, last_weights, only_run, read_metrics

pytestmark = pytest.mark.usefixtures("process_state")
LOADERS = ["dali", "reference", "synthetic"]


@pytest.fixture(autouse=True)
def signals_only_ask() -> Iterator[None]:
    """Keep a signal before the first step from ending the process, which is pytest's here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "StopSignal", lambda exits: StopSignal())
        yield


def run_tiny(folder: Path, *overrides: str) -> int:
    """Train. The event files of earlier starts are renamed as if those were seconds ago.

    TensorBoard orders its files by name, which holds the second of the start.
    """
    for number, path in enumerate(sorted(folder.glob("*/tb/*"), key=lambda path: path.stat().st_mtime_ns)):
        if not path.parents[1].is_symlink():
            path.rename(path.with_name(f"events.out.tfevents.{number:010d}"))
    return train.main([str(RECIPE), f"log.dir={folder}", *overrides])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> dict[str, Path]:
    """Return a whole run with each loader."""
    folders = {loader: tmp_path_factory.mktemp(loader) for loader in LOADERS}
    for loader, folder in folders.items():
        assert run_tiny(folder, f"data.loader={loader}") == 0
    return {loader: only_run(folder) for loader, folder in folders.items()}


class Crash(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `stop_after(step, number)`: send a signal after a step; without one, crash in the next step."""

    def arrange(last: int, number: int | None = None) -> None:
        step = Step.__call__

        def watched(self: Step, batch: Any) -> StepOutput:
            if number is None and self._state.step == last:
                raise Crash
            output = step(self, batch)
            if number is not None and self._state.step == last:
                os.kill(os.getpid(), number)
            return output

        monkeypatch.setattr(Step, "__call__", watched)

    return arrange


def assert_same_run(found: Path, expected: Path) -> None:
    assert_equal(last_weights(found), last_weights(expected))
    assert_equal(last_ema(found), last_ema(expected))
    assert read_metrics(found) == read_metrics(expected)
    results = [json.loads((run / "result.json").read_text()) for run in (found, expected)]
    for key in (
        "test_accuracy",
        "test_loss",
        "best_test_accuracy",
        "best_step",
        "train_loss",
        "skipped_steps",
        "steps",
        "epochs",
    ):
        assert results[0][key] == results[1][key], key
    scalars = []
    for run in (found, expected):
        accumulator = EventAccumulator(str(run / "tb"))
        accumulator.Reload()
        scalars.append(
            [
                (event.step, event.value)
                for tag in ("train/loss", "test/loss")
                for event in accumulator.Scalars(tag)
            ]
        )
    assert scalars[0] == scalars[1]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("step", [7, 10])
def test_stopped_by_a_signal(
    loader: str,
    step: int,
    uninterrupted: dict[str, Path],
    tmp_path: Path,
    stop_after: Any,
    monkeypatch,
    capsys,
):
    """Step 7 is inside an epoch and a log window; step 10 ends an epoch."""
    keys = (f"data.loader={loader}", "resume=auto")
    with monkeypatch.context():
        command = ["python", "-m", "pipeline.train", str(RECIPE), f"log.dir={tmp_path}", *keys]
        monkeypatch.setattr(sys, "orig_argv", command)
        stop_after(step, signal.SIGTERM)
        assert run_tiny(tmp_path, *keys) == 75
    monkeypatch.undo()
    told = capsys.readouterr()
    words = ["pipeline.train", str(RECIPE), f"log.dir={tmp_path}", keys[0], "resume=auto"]
    saved, _, command = told.err.partition("; continue with ")
    assert saved == f"stopped: by SIGTERM, saved at step {step}"
    assert shlex.split(command)[-len(words) :] == words
    run = only_run(tmp_path)
    assert newest_intact(run / "checkpoints") == (folder_of(run / "checkpoints", step), [])
    assert not (run / "result.json").exists()
    assert run_tiny(tmp_path, *keys) == 0
    assert f"continuing {run} from step {step}" in capsys.readouterr().out
    assert_same_run(only_run(tmp_path), uninterrupted[loader])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("step", [6, 11])
def test_crashed(
    loader: str,
    step: int,
    uninterrupted: dict[str, Path],
    tmp_path: Path,
    stop_after: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    """Records of steps after the last checkpoint are removed and written again."""
    keys = (f"data.loader={loader}", "resume=auto")
    stop_after(step)
    with pytest.raises(Crash):
        run_tiny(tmp_path, *keys)
    monkeypatch.undo()
    assert run_tiny(tmp_path, *keys) == 0
    assert_same_run(only_run(tmp_path), uninterrupted[loader])


METHODS = {
    "ema": ("ema.decay=0.9", "evaluation.flip_tta=true"),
    "accumulation": ("optimizer.accumulate=2", "ema.decay=0.9"),
    "fp16": (
        "precision.mode=fp16",
        "precision.init_scale=1.0e+5",
        "precision.growth_interval=3",
        "optimizer.clip_norm=0.5",
    ),
    "mixing": ("augment.mix=ricap", "loss.label_smoothing=0.1"),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.01"),
    "muon": ("optimizer.name=muon", "optimizer.lr=0.02", "schedule.name=one_cycle"),
    "torchvision's recipe": (
        *("augment.trivial_augment=true", "augment.erasing=0.5", "augment.repeats=2", "loss.name=bce"),
        *("augment.mix=mixup_or_cutmix", "ema.decay=0.9", "ema.every=3st", "model.stochastic_depth=0.3"),
    ),
    "fine-tuning": ("model.freeze=[stem.*,stages.0.*]", "optimizer.layer_decay=0.7"),
}


@pytest.mark.parametrize("name", METHODS)
def test_with_the_methods_that_are_off_by_default(
    name: str, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
):
    assert run_tiny(tmp_path / "whole", *METHODS[name]) == 0
    stop_after(7, signal.SIGTERM)
    assert run_tiny(tmp_path / "parts", *METHODS[name]) == 75
    monkeypatch.undo()
    assert run_tiny(tmp_path / "parts", *METHODS[name], "resume=auto") == 0
    assert_same_run(only_run(tmp_path / "parts"), only_run(tmp_path / "whole"))


def test_interrupted_again_and_again(
    uninterrupted: dict[str, Path], tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
):
    for step in range(1, 15):
        stop_after(step, signal.SIGINT)
        assert run_tiny(tmp_path, "resume=auto") == 75
        monkeypatch.undo()
    assert run_tiny(tmp_path, "resume=auto") == 0
    assert_same_run(only_run(tmp_path), uninterrupted["dali"])


def test_a_signal_at_the_last_step_ends_nothing_early(
    uninterrupted: dict[str, Path], tmp_path: Path, stop_after: Any
):
    stop_after(15, signal.SIGTERM)
    assert run_tiny(tmp_path) == 0
    assert_same_run(only_run(tmp_path), uninterrupted["dali"])


def test_killed_between_the_last_checkpoint_and_the_result(
    uninterrupted: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finalize.finish", killed)
        with pytest.raises(Crash):
            run_tiny(tmp_path)
    assert run_tiny(tmp_path, "resume=auto") == 0
    assert_same_run(only_run(tmp_path), uninterrupted["dali"])


def test_a_damaged_checkpoint_is_passed_over(
    uninterrupted: dict[str, Path], tmp_path: Path, stop_after: Any, monkeypatch, capsys
):
    stop_after(11, signal.SIGTERM)
    assert run_tiny(tmp_path) == 75
    monkeypatch.undo()
    run = only_run(tmp_path)
    damaged = folder_of(run / "checkpoints", 11) / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run_tiny(tmp_path, "resume=auto") == 0
    told = capsys.readouterr().out
    assert f"warning: {damaged}: damaged (its SHA-256 is not the manifest's)" in told
    assert f"continuing {run} from step 10" in told or f"continuing {run} from step 8" in told
    assert_same_run(run, uninterrupted["dali"])


def test_auto_starts_anew_where_nothing_is_unfinished(
    tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
):
    stop_after(3, signal.SIGTERM)
    assert run_tiny(tmp_path, "duration=1ep") == 75
    monkeypatch.undo()
    assert run_tiny(tmp_path, "duration=1ep", "seed=4", "resume=auto") == 0  # another config
    assert run_tiny(tmp_path, "duration=1ep", "resume=auto") == 0  # the run that was stopped
    assert run_tiny(tmp_path, "duration=1ep", "resume=auto") == 0  # the same again, which is finished now
    runs = [path for path in tmp_path.iterdir() if path.name != "latest"]
    assert len(runs) == 3
    assert all((run / "result.json").exists() for run in runs)


def test_a_path_is_continued_and_then_refused(
    uninterrupted: dict[str, Path], tmp_path: Path, stop_after: Any, monkeypatch, capsys
):
    stop_after(9, signal.SIGTERM)
    assert run_tiny(tmp_path) == 75
    monkeypatch.undo()
    path = tmp_path / "latest"
    assert run_tiny(tmp_path, f"resume={path}", "optimizer.lr=0.2") == 2
    assert "(different: optimizer.lr)" in capsys.readouterr().err
    assert run_tiny(tmp_path, f"resume={path}") == 0
    assert_same_run(only_run(tmp_path), uninterrupted["dali"])
    assert run_tiny(tmp_path, f"resume={path}") == 2
    assert "is finished" in capsys.readouterr().err


@needs_gpu()
@pytest.mark.parametrize("loader", ["dali", "fused"])
def test_on_a_gpu_the_same_batches_follow(
    loader: str, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
):
    """Samples, pixels and rates are equal, with captured steps, GradScaler, weight average and mixing."""
    gpu = ("runtime.device=gpu", f"data.loader={loader}", "data.image_size=32")
    keys = (*gpu, "precision.mode=fp16", "ema.decay=0.9", "augment.mix=cutmix")
    whole: list[dict[str, Any]] = []
    with watched_steps(whole):
        assert run_tiny(tmp_path / "whole", *keys) == 0
    parts: list[dict[str, Any]] = []
    with watched_steps(parts):
        stop_after(7, signal.SIGTERM)
        assert run_tiny(tmp_path / "parts", *keys) == 75
        monkeypatch.undo()
    with watched_steps(parts):
        assert run_tiny(tmp_path / "parts", *keys, "resume=auto") == 0
    assert len(whole) == 15
    assert_equal(parts, whole)
    metrics = (read_metrics(only_run(tmp_path / name)) for name in ("whole", "parts"))
    scales = [
        [record["loss_scale"] for record in records if record["kind"] == "train"] for records in metrics
    ]
    assert scales[0] == scales[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "step"), [("SIGTERM", 75, 7), ("SIGKILL", -9, 11)])
def test_in_a_process_of_its_own(
    name: str, code: int, step: int, uninterrupted: dict[str, Path], tmp_path: Path
):
    """The exit code is the real one. The files of a killed process are as the system left them."""
    command = ("-W", "error", "-m", "tests.integration.interrupted", name, str(step))
    done = run_python(*command, str(RECIPE), f"log.dir={tmp_path}", check=False, OMP_NUM_THREADS="1")
    assert done.returncode == code, done.stderr
    assert run_tiny(tmp_path, "resume=auto") == 0
    assert_same_run(only_run(tmp_path), uninterrupted["dali"])


def start_in_a_group(*command: str, mark: str) -> subprocess.Popen[str]:
    """Start a run with two loader workers in a process group of its own.

    The environment of its processes holds MARK.
    """
    name, value = mark.split("=")
    return subprocess.Popen(
        [sys.executable, *command, "data.loader=reference", "data.num_threads=2", "duration=10000ep"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def workers_of(process: subprocess.Popen[str], line: str) -> list[psutil.Process]:
    """Return the worker processes of the loaders, once the run has printed a line that begins with LINE."""
    assert process.stdout is not None
    while not (printed := process.stdout.readline()).startswith(line):
        assert printed, "the run ended early"
    return [worker for server in psutil.Process(process.pid).children() for worker in server.children()]


def assert_nothing_left(workers: list[psutil.Process], mark: str) -> None:
    assert psutil.wait_procs(workers, timeout=PATIENCE_S)[1] == []
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if _holds(path, mark)]


@pytest.mark.slow
def test_a_signal_to_the_whole_group_spares_the_loader_s_workers(tmp_path: Path):
    """launch.sh and Ctrl-C send such a signal: the run saves and stops, and no process is left."""
    mark = f"QUICKRES_TEST={tmp_path}"
    process = start_in_a_group("-m", "pipeline.train", str(RECIPE), f"log.dir={tmp_path}", mark=mark)
    workers = workers_of(process, "epoch   2")
    assert len(workers) == 4  # two for training, two for evaluation
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, err
    assert err.startswith("stopped: by SIGTERM"), err
    assert_nothing_left(workers, mark)


@pytest.mark.slow
def test_a_crash_ends_the_loader_s_workers(tmp_path: Path):
    mark = f"QUICKRES_TEST={tmp_path}"
    process = start_in_a_group(
        "-m", "tests.integration.interrupted", "CRASH", "100", str(RECIPE), f"log.dir={tmp_path}", mark=mark
    )
    workers = workers_of(process, "epoch   2")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, "RuntimeError: nobody expects this" in err) == (1, True), err
    assert_nothing_left(workers, mark)


@pytest.mark.slow
def test_a_killed_run_takes_the_loader_s_workers_with_it(tmp_path: Path):
    """A process that skips cleanup ends like this: after a second signal, or if another one has failed."""
    mark = f"QUICKRES_TEST={tmp_path}"
    process = start_in_a_group("-m", "pipeline.train", str(RECIPE), f"log.dir={tmp_path}", mark=mark)
    workers = workers_of(process, "epoch   2")
    process.kill()
    assert psutil.wait_procs(workers, timeout=PATIENCE_S)[1] == []
    # the fork server and torch's tracker of semaphores hold the pipes until they end
    process.communicate(timeout=PATIENCE_S)
    assert_nothing_left(workers, mark)


def _holds(environ: Path, entry: str) -> bool:
    """Return True if a living process was started with this variable."""
    try:
        return entry.encode() in environ.read_bytes().split(b"\0")
    except OSError:
        return False
