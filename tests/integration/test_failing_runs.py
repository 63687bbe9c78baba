"""Runs that cannot go on, or that cannot begin, end with one message."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import train
from pipeline.run.checkpoint import folder_of, newest_intact
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.usefixtures("process_state")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_saved(
    tmp_path: Path, before_step: Any, capsys: Any
):
    before_step(8, lambda _, batch: batch.images.fill_(math.nan))
    assert train.main([str(RECIPE), f"log.dir={tmp_path}"]) == 1
    assert "error: step 9: the training loss is nan at learning rate 0.06" in capsys.readouterr().err
    path = only_run(tmp_path)
    assert not (path / "result.json").exists()
    assert newest_intact(path / "checkpoints")[0] == folder_of(path / "checkpoints", 8)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 7


def test_updates_that_all_overflow_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys = (
        "precision.mode=fp16",
        "precision.init_scale=1.0e+12",
        "precision.max_consecutive_skips=3",
        "log.log_every=1st",
    )
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *keys]) == 1
    told = capsys.readouterr().err
    assert "error: step 3: 3 updates in a row overflowed in fp16 at loss scale 1.25e+11" in told
    assert "precision.mode=bf16" in told


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["data.loader=fused"], "data.loader: fused runs on a GPU only; use data.loader=dali"),
        (
            ["data.batch_size=41", "data.loader=synthetic"],
            "data.batch_size: 41 is more than the 40 training images; use 40 or less",
        ),
        pytest.param(
            *(["runtime.device=gpu"], "runtime.device: gpu"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["data.dataset=folder", "data.root=/nowhere"], "/nowhere"),
        (["resume=/nowhere"], "/nowhere: not a run folder"),
        (["log.dir=/proc/nowhere"], "log.dir: "),
    ],
)
def test_what_is_wrong_is_found_before_training(
    keys: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = [] if keys[0].startswith("log.dir") else [f"log.dir={tmp_path}/runs"]
    assert train.main([str(RECIPE), *where, *keys]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and told in captured.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("QUICKRES_NUM_PROCESSES", "2", "launch.sh started 2 processes, but 1 "),
        (
            "ACCELERATE_MIXED_PRECISION",
            "bf16",
            "mixed precision bf16, but precision.mode is fp32; change one of the two",
        ),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", "dynamo backend eager, but compile.mode is none"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "dynamo backend inductor, but compile.mode is none"),
    ],
)
def test_a_launcher_that_contradicts_the_config(
    variable: str,
    value: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv(variable, value)
    assert train.main([str(RECIPE), f"log.dir={tmp_path}/runs", "compile.mode=none"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
