"""Kernels are compiled in threads by a rehearsal, which changes nothing of the run."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from pipeline.config import Config, load_config
from pipeline.data import build_loaders, load_splits
from pipeline.data.batch import Batch
from pipeline.distributed.processes import connect
from pipeline.models.layers import NormAct
from pipeline.training.build import build_state
from pipeline.training.compile_ahead import WithoutHeavyWork, compile_ahead, rehearsed
from pipeline.training.plan import Plan
from pipeline.training.state import TrainState
from pipeline.training.step import Step

# Compiled for a GPU that is not there: its driver, of which compiling needs three answers, is replaced.
_COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class Driver:
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))


driver.set_active(Driver())

from kernels.arguments import Norm
from kernels.batch_norm_act import forward
from pipeline.training.compile_ahead import compiling_only

launch = JITFunction.run
for _ in range(2):
    with compiling_only():
        for channels in (16, 64):
            x = torch.ones(4, channels, 8, 8, dtype=torch.float16)
            x = x.contiguous(memory_format=torch.channels_last)
            norm = Norm(*(torch.ones(channels) for _ in range(4)))
            forward.launch_forward(x, None, norm, "relu", 0.1, 1e-5)
    assert torch.equal(norm.running_mean, torch.ones(channels)), "a kernel was run"
    assert JITFunction.run is launch
    compiled = [forward._norm_statistics_kernel, forward._norm_apply_kernel]
    print([len(kernel.device_caches[0][0]) for kernel in compiled])
"""


def leaves(tree: Any) -> list[Any]:
    """Return all that a tree holds, tensors as numbers."""
    values = tree_flatten(tree)[0]
    return [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]


def test_launches_become_compilations(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", _COMPILE]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["[2, 2]", "[2, 2]"]
    assert len(list(tmp_path.rglob("*.cubin"))) == 4


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_that_is_left_out_gives_memory_of_the_same_layout(
    memory_format: torch.memory_format,
) -> None:
    layer = nn.Conv2d(8, 16, 3, stride=2, bias=False).to(memory_format=memory_format)
    x = torch.ones(4, 8, 9, 9).contiguous(memory_format=memory_format).requires_grad_()

    def run() -> tuple[torch.Tensor, ...]:
        y = layer(x)
        return y, *torch.autograd.grad(y, (x, layer.weight), torch.ones_like(y))

    expected = run()
    with WithoutHeavyWork(), torch.autograd.set_multithreading_enabled(False):
        results = run()
    for result, tensor in zip(results, expected, strict=True):
        assert (result.shape, result.stride(), result.dtype) == (tensor.shape, tensor.stride(), tensor.dtype)
    torch.testing.assert_close(run(), expected)


def build(*keys: str) -> tuple[Config, Step, TrainState, Batch]:
    """Return a step that has not been taken, and a batch for it."""
    small = ("data.dataset=digits", "runtime.device=cpu", "data.batch_size=8", "compile.mode=none")
    config = load_config(overrides=[*small, *keys])
    loaders = build_loaders(config, load_splits(config.data, 0), torch.device("cpu"))
    plan = Plan.of(config, loaders.train.steps_per_epoch)
    state = build_state(config, load_splits(config.data, 0), connect(config))
    step = Step(config, state, lambda step: [0.1] * len(state.optimizer.param_groups), False, plan)
    return config, step, state, next(loaders.train.batches_from(0))


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """Rehearse on the CPU too; return what the rehearsals raised, or None."""
    ended: list[BaseException | None] = []

    def compile_ahead(rehearse: Callable[[], object], *about: object) -> None:
        def noted() -> None:
            ended.append(None)
            try:
                rehearse()
            except Exception as error:
                ended[-1] = error
                raise

        rehearsed(noted, [])

    monkeypatch.setattr("pipeline.training.step.compile_ahead", compile_ahead)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    return ended


METHODS = {
    "muon, average": ("model.name=resnet20", "optimizer.name=muon", "ema.decay=0.9"),
    "micro-batches": ("model.name=resnet20", "optimizer.accumulate=2"),
    "draws": ("model.name=resnet20", "model.stochastic_depth=0.5", "augment.mix=mixup"),
    "a later phase": (
        *("model.name=resnet20", "compile.drop_ended=true", "duration=30st"),
        "optimizer.groups=[{match: stem.*, until: 2st}]",
    ),
}


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_a_rehearsed_step_changes_nothing_of_the_run(
    keys: tuple[str, ...], as_on_gpu: list[BaseException | None]
) -> None:
    results = []
    for rehearses in (False, True):
        _, step, state, batch = build(*keys)
        state.step = 5
        torch.manual_seed(1)
        if rehearses:
            inputs = [batch.images, batch.labels]
            mixes = "augment.mix=mixup" in keys
            draws = [step._mix_draws.at(state.step)] if mixes and step._mix_draws is not None else []
            step._compile_kernels([*inputs, *draws])
            assert all(parameter.grad is None for parameter in state.model.parameters())
        output = step(batch)
        results.append(
            [output.loss.item(), *leaves(state.snapshot().weights), *leaves(state.snapshot().rest)]
        )
    assert as_on_gpu == [None]
    assert results[0] == results[1]


def test_a_rehearsal_that_fails_is_left_to_the_pass(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        torch.rand(3)
        raise torch.OutOfMemoryError("full")

    before = torch.get_rng_state()
    rehearsed(fail, [])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.autograd.is_multithreading_enabled()


def test_a_transposed_convolution_is_computed() -> None:
    layer, x = nn.ConvTranspose2d(8, 16, 3), torch.ones(1, 8, 4, 4, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sum(), (x, *layer.parameters()))
    with WithoutHeavyWork(), torch.autograd.set_multithreading_enabled(False):
        gradients = torch.autograd.grad(layer(x).sum(), (x, *layer.parameters()))
    torch.testing.assert_close(gradients, expected)


def test_nothing_is_rehearsed_without_a_gpu_or_without_our_kernels() -> None:
    norm = NormAct(8, fused=True, activation="relu")
    for model, tensor in ((norm, torch.ones(1)), (nn.Linear(1, 1), OnGpu())):
        compile_ahead(lambda: pytest.fail("rehearsed"), model, [tensor])


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda", 0)


@pytest.fixture
def rehearsals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that compiles a norm on our kernels ahead, and returns the number of rehearsals."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())

    def count(batch: int = 4, about: str = "", fails: bool = False) -> int:
        taken = []

        def rehearse() -> None:
            taken.append(None)
            if fails:
                raise torch.OutOfMemoryError("full")

        norm = NormAct(8, fused=True, activation="relu")
        compile_ahead(rehearse, norm, [torch.ones(batch, 8).as_subclass(OnGpu)], about)
        return len(taken)

    return count


def test_what_an_earlier_process_has_rehearsed_is_not_rehearsed_again(
    rehearsals: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [rehearsals(), rehearsals()] == [1, 0]
    assert [rehearsals(batch=2), rehearsals(about="evaluation"), rehearsals(batch=2)] == [1, 1, 0]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert [rehearsals(), rehearsals()] == [1, 0]
    monkeypatch.delenv("TRITON_CACHE_DIR")
    assert [rehearsals(), rehearsals()] == [1, 1], "nobody knows where the kernels are"


def test_a_rehearsal_that_failed_is_taken_again(rehearsals: Callable[..., int]) -> None:
    assert [rehearsals(fails=True), rehearsals(), rehearsals()] == [1, 1, 0]


def test_a_mark_that_cannot_be_left_is_no_failure(rehearsals: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "triton").write_text("no folder")
    assert [rehearsals(), rehearsals()] == [1, 1]
