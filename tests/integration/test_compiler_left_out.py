"""A run that compiles nothing never imports torch's compiler, which would take a second of its start."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpus import needs_gpu
from tests.tiny import RECIPE

_RUN = """
import sys
from pipeline import train

code = train.main(sys.argv[1:])
print(*sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
sys.exit(code)
"""


def imported_by(*arguments: str) -> list[str]:
    """Return which of the compiler's two parts a run has imported."""
    command = [sys.executable, "-c", _RUN, str(RECIPE), "duration=4st", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()[-1].split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        ("log.report=true", "log.explain=true", "log.tensorboard=true"),
        ("optimizer.name=muon", "optimizer.lr=0.02", "ema.decay=0.9"),
        ("optimizer.name=adamw", "optimizer.lr=0.001", "augment.mix=mixup", "evaluation.views=mirror"),
    ],
    ids=["with its pictures", "muon", "adamw"],
)
def test_a_run_on_the_cpu(keys: tuple[str, ...], tmp_path: Path) -> None:
    assert imported_by(f"log.dir={tmp_path}", "runtime.device=cpu", *keys) == []


@pytest.mark.slow
def test_a_run_that_compiles_does_import_it(tmp_path: Path) -> None:
    compiles = ("compile.mode=default", "compile.backend=aot_eager")
    assert imported_by(f"log.dir={tmp_path}", "runtime.device=cpu", *compiles) == [
        "torch._dynamo",
        "torch._inductor",
    ]


@needs_gpu()
@pytest.mark.parametrize("network", ["resnet20", "speednet94"])
def test_a_captured_run(network: str, tmp_path: Path) -> None:
    keys = ("runtime.device=gpu", "compile.mode=graph", "precision.mode=fp16", "data.image_size=32")
    kernels = ("model.fused_norm=true", "model.fused_stem=true", "optimizer.name=muon", "optimizer.lr=0.02")
    assert imported_by(f"log.dir={tmp_path}", f"model.name={network}", *keys, *kernels) == []


_LISTED = """
import importlib
import sys
from pathlib import Path

import torch
from torch._library.custom_ops import OPDEFS

import kernels
from pipeline.training.torch_workarounds import keep_compiler_out_of_operators

keep_compiler_out_of_operators(torch.device("cuda"))
listed = set(OPDEFS)
print("torch._dynamo" in sys.modules)
for file in Path(kernels.__path__[0]).glob("*/op.py"):
    importlib.import_module(f"kernels.{file.parent.name}.op")
print(*sorted(set(OPDEFS) - listed))
"""


def test_all_operators_are_listed() -> None:
    """An operator that is left out would import the compiler after all."""
    command = [sys.executable, "-c", _LISTED]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.stdout.split() == ["False"], ran.stdout + ran.stderr
