"""On a GPU, the rehearsal of a step and of an evaluation compiles all kernels that they launch."""

import json
import subprocess
import sys

import pytest

from tests.gpus import NEEDS_GPU

pytestmark = NEEDS_GPU

# In a process of its own, where no kernel has been compiled yet. Kernels of a loader have no rehearsal.
_TRAIN = """
import json, sys
import torch
from triton import knobs

from pipeline.data import load_splits
from pipeline.distributed.processes import connect
from pipeline.training.build import set_backends
from pipeline.training.trainer import Trainer
from tests.parity.on_gpu import small_config

compiled = {True: [], False: []}


def note(*, fn, is_manual_warmup, **rest):
    if not any(name in fn.module for name in ("augment", "epoch_draws")):
        compiled[is_manual_warmup].append(fn.name)


knobs.runtime.jit_post_compile_hook = note
config = small_config(*sys.argv[1:])
set_backends(config)
processes = connect(config)
with torch.cuda.stream(torch.cuda.Stream()):
    trainer = Trainer.build(config, load_splits(config.data, 0), processes)
    trainer.fit()
print(json.dumps({"rehearsed": compiled[True], "late": compiled[False]}))
"""
_KERNELS = ("model.fused_norm=true", "model.fused_stem=true", "compile.mode=graph", "duration=8st")
NETWORKS = {
    "resnet20": ("model.name=resnet20",),
    "resnet18": ("model.name=resnet18", "model.zero_init_residual=false", "optimizer.name=muon"),
    "speednet94": ("model.name=speednet94", "optimizer.name=muon", "model.activation=gelu"),
    "speednet96": ("model.name=speednet96", "evaluation.views=mirror", "optimizer.accumulate=2"),
}


@pytest.mark.parametrize("keys", NETWORKS.values(), ids=NETWORKS)
def test_nothing_is_left_to_compile_after_the_rehearsal(keys: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", _TRAIN, *_KERNELS, "precision.mode=fp16", "optimizer.lr=0.02", *keys]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    compiled = json.loads(ran.stdout.splitlines()[-1])
    assert compiled["late"] == [] and len(compiled["rehearsed"]) >= 8
