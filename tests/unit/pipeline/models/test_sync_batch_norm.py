"""Batch norm by the statistics of all processes, here of one: the same as torch's; with several in integration/test_invariance.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.models.layers import NormAct
from tests.tiny import tiny_config


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def pair(sync: bool) -> tuple[NormAct, torch.nn.BatchNorm2d]:
    torch.manual_seed(0)
    found, expected = NormAct(6, relu=False), torch.nn.BatchNorm2d(6)
    found.sync = sync
    for norm in (found, expected):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 6))
            norm.bias.copy_(torch.linspace(-1, 1, 6))
    return found, expected


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("process_group")
def test_it_is_batch_norm(compiled: bool):
    found, expected = pair(sync=True)
    if compiled:
        found.compile(backend="aot_eager", fullgraph=True)
    x = (100 + torch.randn(5, 6, 4, 3)).requires_grad_()  # far from zero, where E[x²] - E[x]² loses digits
    other = x.detach().clone().requires_grad_()
    gradient = torch.randn(5, 6, 4, 3)
    _ = found(x), expected(other)  # the running statistics move twice
    y, wanted = found(x), expected(other)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    assert type(y.grad_fn).__name__ != type(wanted.grad_fn).__name__, "it is torch's own"
    y.backward(gradient)
    wanted.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-3, atol=1e-4)
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            getattr(found, name).grad, getattr(expected, name).grad, rtol=1e-4, atol=1e-3
        )
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.eval()(x), expected.eval()(x), rtol=1e-4, atol=1e-3)


def test_alone_it_is_torch_s_own():
    found, expected = pair(sync=True)
    x = torch.randn(5, 6, 4, 3)
    assert torch.equal(found(x), expected(x))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            ("model.fused_norm=true",),
            "model.sync_batchnorm: the kernels of model.fused_norm know one process's statistics",
        ),
        (
            ("model.name=torchvision/resnet18", "model.shortcut=B"),
            "model.sync_batchnorm: torchvision/resnet18 is built by torchvision",
        ),
    ],
)
def test_what_it_does_not_go_with(keys: tuple[str, ...], told: str):
    with pytest.raises(UserError, match=told):
        tiny_config("model.sync_batchnorm=true", *keys)
