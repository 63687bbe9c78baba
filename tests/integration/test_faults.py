"""Faults of the machine end a run with one message and a non-zero exit code, and lose no checkpoint."""

import itertools
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import __main__ as cli
from pipeline import train
from pipeline.data import build_loaders, load_splits
from pipeline.errors import UserError
from pipeline.run.checkpoint import folder_of, load_weights, newest_intact
from pipeline.training.step import Step
from tests.messages import error_line
from tests.tiny import RECIPE, only_run, tiny_config, tiny_trainer, train_steps

pytestmark = pytest.mark.usefixtures("process_state")
QUIET = ("log.tensorboard=false",)


# --- numbers that are not finite ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ((), "lengthen schedule.warmup, or set optimizer.clip_norm=1"),
        (("optimizer.clip_norm=1",), "optimizer.lr, or lengthen schedule.warmup"),
    ],
)
def test_no_checkpoint_holds_nan(
    before_step: Any, keys: tuple[str, ...], remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The loss is checked in steps 5 and 10, the checkpoint is due in step 8."""
    before_step(6, lambda _, batch: batch.images.fill_(math.nan))
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", "log.log_every=1ep", *QUIET, *keys]) == 1
    line = error_line(capsys)
    assert line.startswith("step 8: ") and "finite" in line and "learning rate 0.07" in line
    assert "lower optimizer.lr" in line and remedy in line
    checkpoint, damaged = newest_intact(only_run(tmp_path) / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-00000005" and not damaged
    assert all(tensor.isfinite().all() for tensor in load_weights(checkpoint).values())


@pytest.mark.parametrize("keys", [[], ["optimizer.name=adamw"], ["ema.decay=0.9"], ["optimizer.momentum=0"]])
def test_is_finite_checks_all_that_is_saved(keys: list[str]):
    nesterov = ["optimizer.nesterov=false"] if "optimizer.momentum=0" in keys else []
    trainer = tiny_trainer(tiny_config(*keys, *nesterov))
    train_steps(trainer, 1)
    state = trainer.state
    assert state.is_finite()
    buffer = next(buffer for buffer in state.model.buffers() if buffer.is_floating_point())
    tensors = [next(state.model.parameters()).data, buffer]
    tensors += [value for entry in list(state.optimizer.state.values())[:1] for value in entry.values()]
    tensors += [next(state.ema.model.parameters()).data] if state.ema is not None else []
    for tensor in tensors:
        for bad in (math.nan, math.inf, -math.inf):
            before = tensor.clone()
            tensor[(-1,) * tensor.ndim] = bad
            assert not state.is_finite()
            tensor.copy_(before)
    assert state.is_finite()


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (
            MemoryError("Unable to allocate 3.2 TiB for an array"),
            "this machine is out of memory at data.batch_size=8 (Unable to allocate",
            "fewer images",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "this machine is out of memory at",
            "fewer images",
        ),
        (
            RuntimeError("CUDA error: out of memory\nCompile with"),
            "the GPU is out of memory at data.batch_size=8 (CUDA error: out of memory)",
            "optimizer.accumulate=2",
        ),
        (RuntimeError("DataLoader worker is out of shared memory"), "shared memory", "/dev/shm"),
    ],
)
def test_too_little_memory(
    error: Exception,
    message: str,
    remedy: str,
    before_step: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    def fail(*_: object) -> None:
        raise error

    before_step(5, fail)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 1
    line = error_line(capsys)
    assert message in line and remedy in line
    assert newest_intact(only_run(tmp_path) / "checkpoints")[0] is not None


def test_a_data_set_too_large_for_the_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The system would grant the memory, and kill the process once the process uses it."""
    keys = (f"log.dir={tmp_path}/runs", "data.num_samples=10000000", "data.image_size=1024")
    assert train.main([str(RECIPE), *keys]) == 2
    line = error_line(capsys)
    assert line.startswith("data.num_samples: 10000000 images of 1024 x 1024 pixels take 35,156 GiB")
    assert "use data.num_samples=" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU is out of memory (CUDA out of memory",
        ),
        (MemoryError(), "this machine is out of memory (MemoryError)"),
        (MemoryError(), "use runtime.device=cpu (predict: --device cpu), a smaller data.eval_batch_size"),
        (
            OSError(28, "No space left on device", "/runs/a/report.html"),
            "/runs/a/report.html: No space left on device; free space there",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "/runs/x"),
            "/runs/x: No such file or directory; give a place that can be used",
        ),
    ],
)
def test_other_commands_report_it_too(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.config.reference_table", fail)
    assert cli.main(["config-reference"]) == 1
    assert message in error_line(capsys)


def test_a_bug_is_not_a_fault_of_the_machine(tmp_path: Path):
    bugs = (
        ZeroDivisionError(),
        FileNotFoundError(2, "no file"),
        RuntimeError("shapes"),
        OSError("no number"),
    )
    for error in bugs:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Step, "__call__", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET])


def test_commands_report_a_damaged_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 0
    run = only_run(tmp_path)
    damaged = folder_of(run / "checkpoints", 15) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert cli.main(["evaluate", str(run)]) == 0
    (record,) = caplog.records
    assert f"{damaged}: damaged" in record.getMessage() and "step-00000012" in record.getMessage()
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--checkpoint", "15"]) == 2
    assert error_line(capsys).startswith(f"{damaged}: damaged")


# --- data and clocks ------------------------------------------------------------------------------------


def make_folder(root: Path, size: int) -> None:
    generator = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "test"), "ab", range(8)):
        path = root / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("loader", "limit", "threads"),
    [
        ("dali", 256, 1),
        ("dali", 4, 1),
        ("reference", 4, 1),
        pytest.param("reference", 4, 2, marks=pytest.mark.slow),
    ],
)
def test_a_data_set_that_goes_away(
    loader: str,
    limit: int,
    threads: int,
    before_step: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Small images are in memory by then; larger images are read from their files."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    make_folder(data, 8)
    before_step(5, lambda *_: shutil.rmtree(data))
    keys = ["data.dataset=folder", f"data.root={data}", f"data.loader={loader}", f"data.cache_below={limit}"]
    keys += [f"data.num_threads={threads}", "duration=20ep", "augment.cutout=0", *QUIET]
    code = train.main([str(RECIPE), f"log.dir={runs}", *keys])
    if limit == 256:
        assert code == 0 and (only_run(runs) / "result.json").exists()
        return
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and f"{data}/" in error and "No such file or directory" in error
    assert "Traceback" not in error
    assert newest_intact(only_run(runs) / "checkpoints")[0] is not None


@pytest.mark.parametrize(("part", "label"), [("train", 4), ("test", -1)])
def test_labels_out_of_range(part: str, label: int):
    """The data set is made in Python; labels of files and folders are checked when they are read."""
    config = tiny_config()
    splits = load_splits(config.data, config.seed)
    getattr(splits, part).labels[3] = label
    name = {"train": "training"}.get(part, part)
    with pytest.raises(UserError, match=rf"{name} labels: 1 .*0\.\.3.*{label} .*image 3.*class name"):
        build_loaders(config, splits, torch.device("cpu"))


@pytest.mark.parametrize("jump", [-3600.0, 36_000.0])
def test_setting_the_clock_changes_no_duration(
    jump: float,
    before_step: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    real, began = time.time, time.monotonic()
    monkeypatch.setenv("QUICKRES_START_TIME", str(real() - 2))
    before_step(3, lambda *_: monkeypatch.setattr(time, "time", lambda: real() + jump))
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET]) == 0
    result = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert 2 < result["first_step_s"] < result["wall_s"] < 3 + time.monotonic() - began
    assert 0 < result["train_s"] < result["wall_s"]


def test_a_newer_run_by_an_older_clock_is_the_one_to_continue(tmp_path: Path):
    """Names are unique for every setting of the clock; `latest` holds the order."""
    runs = []
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.finalize.finish", lambda *_: None)
            assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET, "duration=4st"]) == 0
        runs.append((tmp_path / "latest").resolve())
    assert runs[0] != runs[1]
    old = (runs[0] / "config.yaml").stat().st_mtime - 3600
    os.utime(runs[1] / "config.yaml", (old, old))
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *QUIET, "duration=4st", "resume=auto"]) == 0
    assert (runs[1] / "result.json").exists() and not (runs[0] / "result.json").exists()
