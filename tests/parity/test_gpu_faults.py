"""A GPU without room, numbers that are not finite inside a captured step, and a plan that opens no GPU."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import train
from pipeline.run.checkpoint import newest_intact
from tests.gpus import NEEDS_GPU
from tests.python import run_python
from tests.tiny import RECIPE, only_run

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("process_state")]
KEYS = ("runtime.device=gpu", "precision.mode=bf16", "log.tensorboard=false")


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
def test_out_of_memory_names_batch_and_remedy(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    keys = [
        "data.image_size=32",
        "data.num_samples=8192",
        "data.batch_size=8192",
        "model.name=resnet18",
        "model.shortcut=B",
    ]
    try:
        assert train.main([str(RECIPE), *KEYS, f"log.dir={tmp_path}", f"compile.mode={mode}", *keys]) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert line.startswith(
        "error: the GPU is out of memory at data.batch_size=8192 (CUDA out of memory. Tried to allocate"
    )
    assert "use optimizer.accumulate=2 (the same batch in smaller parts), or data.batch_size=4096" in line


def test_nan_inside_a_captured_step_reaches_no_checkpoint(
    before_step: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before_step(11, lambda _, batch: batch.images.fill_(math.nan))
    keys = [
        "log.log_every=100st",
        "log.eval_every=100st",
        "log.checkpoint_every=5st",
        "compile.mode=reduce-overhead",
        "duration=20st",
    ]
    assert train.main([str(RECIPE), *KEYS, f"log.dir={tmp_path}", *keys]) == 1
    assert "step 15: weights or norm statistics are no longer finite" in capsys.readouterr().err
    checkpoint, _ = newest_intact(only_run(tmp_path) / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step-00000010"


def test_a_dry_run_opens_no_gpu():
    code = f"""
import torch
from pipeline.train import main
code = main([{str(RECIPE)!r}, "runtime.device=gpu", "--dry-run"])
print("opened" if torch.cuda.is_initialized() else "left alone", code)
"""
    done = run_python("-c", code)
    assert done.stdout.splitlines()[-1] == "left alone 0"
    assert "the machine has" in done.stdout and "1, on " in done.stdout
