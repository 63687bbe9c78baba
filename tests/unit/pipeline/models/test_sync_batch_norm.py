"""Tests synchronised batch norm on one process against torch; integration/test_invariance.py has several."""

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
    actual, expected = NormAct(6, activation="none"), torch.nn.BatchNorm2d(6)
    actual.sync = sync
    for norm in (actual, expected):
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.5, 2, 6))
            norm.bias.copy_(torch.linspace(-1, 1, 6))
    return actual, expected


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.usefixtures("process_group")
def test_it_is_batch_norm(compiled: bool):
    actual, expected = pair(sync=True)
    if compiled:
        actual.compile(backend="aot_eager", fullgraph=True)
    x = (100 + torch.randn(5, 6, 4, 3)).requires_grad_()  # far from zero, where E[x²] - E[x]² loses digits
    other = x.detach().clone().requires_grad_()
    gradient = torch.randn(5, 6, 4, 3)
    _ = actual(x), expected(other)  # two updates of the running statistics
    y, reference = actual(x), expected(other)
    torch.testing.assert_close(y, reference, rtol=1e-4, atol=1e-4)
    assert type(y.grad_fn).__name__ != type(reference.grad_fn).__name__, "it is torch's own"
    y.backward(gradient)
    reference.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-3, atol=1e-4)
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            getattr(actual, name).grad, getattr(expected, name).grad, rtol=1e-4, atol=1e-3
        )
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.eval()(x), expected.eval()(x), rtol=1e-4, atol=1e-3)


def test_alone_it_is_torch_s_own():
    actual, expected = pair(sync=True)
    x = torch.randn(5, 6, 4, 3)
    assert torch.equal(actual(x), expected(x))


def test_the_fused_norm_is_refused_and_another_library_s_network_warned_of():
    with pytest.raises(UserError, match=r"model\.sync_batchnorm: .*model\.fused_norm=false"):
        tiny_config("model.sync_batchnorm=true", "model.fused_norm=true")
    (warning,) = tiny_config("model.sync_batchnorm=true", "model.name=torchvision/resnet18").warnings
    assert "model.sync_batchnorm" in warning and "no effect on torchvision/resnet18" in warning
