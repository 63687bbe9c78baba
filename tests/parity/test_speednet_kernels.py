"""Compare the networks of airbench on their Triton kernels, all together, with the same ones on PyTorch."""

import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels.arguments import Norm
from kernels.batch_norm_act import backward as norm_backward
from kernels.batch_norm_act import forward as norm_forward
from kernels.batch_norm_act import op as norm_op
from kernels.conv_pool_norm_act import backward as conv_pool_backward
from kernels.conv_pool_norm_act import forward as conv_pool_forward
from kernels.conv_pool_norm_act import op as conv_pool_op
from kernels.norm_act_inference import forward as inference_forward
from kernels.norm_act_inference import op as inference_op
from kernels.pool_norm_act import backward as pool_backward
from kernels.pool_norm_act import forward as pool_forward
from kernels.pool_norm_act import op as pool_op
from kernels.whitening_stem import backward as stem_backward
from kernels.whitening_stem import forward as stem_forward
from kernels.whitening_stem import op as stem_op
from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.models.fused import FusedLayer, kernels_in_evaluation
from pipeline.models.speednet import ConvGroup, PaddedConv
from tests.gpus import DEVICE, USES_GPU
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU


class _Stem(torch.autograd.Function):
    """The kernels of `whitening_stem`, without the operator, which on a CPU is the reference."""

    @staticmethod
    def forward(
        ctx: Any, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, channels: int
    ) -> torch.Tensor:
        assert channels == 32
        weight = weight.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(images, weight, bias)
        return stem_forward.launch_forward(images, weight, bias, images.dtype, channels)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        dy = dy.contiguous(memory_format=torch.channels_last)
        return None, None, stem_backward.launch_bias_gradient(dy, *ctx.saved_tensors), None


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the kernels where the operators would run a reference, and return the names of what ran."""
    ran: list[str] = []

    def named(name: str, function: Any) -> Any:
        def launch(*arguments: Any) -> Any:
            ran.append(name)
            return function(*arguments)

        return launch

    def norm(x: torch.Tensor, residual: Any, *rest: Any) -> Any:
        return norm_forward.launch_forward(x, residual, Norm(*rest[:4]), *rest[4:])

    def pool(x: torch.Tensor, *rest: Any) -> Any:
        return pool_forward.launch_forward(x, Norm(*rest[:4]), *rest[4:])

    def conv_pool(x: torch.Tensor, filters: torch.Tensor, *rest: Any) -> Any:
        return conv_pool_forward.launch_forward(x, filters, Norm(*rest[:4]), *rest[4:])

    monkeypatch.setattr(norm_op, "_forward_op", named("norm", norm))
    monkeypatch.setattr(norm_op, "_backward_op", named("norm backward", norm_backward.launch_backward))
    monkeypatch.setattr(pool_op, "_forward_op", named("pool", pool))
    monkeypatch.setattr(pool_op, "_backward_op", named("pool backward", pool_backward.launch_backward))
    monkeypatch.setattr(conv_pool_op, "_forward_op", named("convolution and pool", conv_pool))
    conv_pool_gradient = named("convolution and pool backward", conv_pool_backward.launch_backward)
    monkeypatch.setattr(conv_pool_op, "_backward_op", conv_pool_gradient)
    monkeypatch.setattr(conv_pool_op, "_on_hopper", lambda device: True)
    monkeypatch.setattr(stem_op, "whitening_stem", named("stem", _Stem.apply))
    monkeypatch.setattr(inference_op, "_op", named("inference", inference_forward.launch))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    of_modes = {
        "_uses_kernels": lambda self, _: self.fused and self.training,
        "_infers_on_kernels": lambda self, _: self.fused and not self.training and self.evaluates_on_kernels,
    }
    for name, function in of_modes.items():
        monkeypatch.setattr(FusedLayer, name, function)
    return ran


def test_a_padded_convolution_ignores_channels_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    convolution = PaddedConv(24, 8).to(DEVICE).to(memory_format=torch.channels_last)
    narrow = torch.randn(2, 24, 5, 4, device=DEVICE)
    results = []
    for images in (narrow, F.pad(narrow, (0, 0, 0, 0, 0, 8))):
        y = convolution(images)
        results.append((y, *torch.autograd.grad(y.square().sum(), convolution.weight)))
    assert results[0][1].shape == results[1][1].shape == (8, 24, 3, 3)
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("depth", [2, 3])
def test_the_first_convolution_has_a_kernel_if_its_input_needs_no_gradient(
    depth: Literal[2, 3], launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are those of the other kernels, within the rounding of one or the other."""
    torch.manual_seed(0)
    group = ConvGroup(6, 16, depth, "silu", 0.1, fused_norm=True).to(DEVICE)
    group = group.to(memory_format=torch.channels_last)
    values = F.pad(torch.randn(4, 6, 7, 8), (0, 0, 0, 0, 0, 2))  # with channels of zeros, as of the stem
    values = values.to(DEVICE, memory_format=torch.channels_last)
    outputs, gradients, ran = [], [], []
    for needs_gradient, on_hopper in ((True, True), (False, False), (False, True)):
        monkeypatch.setattr(conv_pool_op, "_on_hopper", lambda device, on_hopper=on_hopper: on_hopper)
        group.zero_grad()
        launches.clear()
        with torch.autocast(DEVICE.type, torch.float16):
            outputs.append(group(values.clone().requires_grad_(needs_gradient)).float())
        outputs[-1].square().sum().backward()
        names = "convolution and pool", "convolution and pool backward", "pool", "pool backward"
        ran.append([launches.count(name) for name in names])
        gradients.append({key: p.grad for key, p in group.named_parameters() if p.grad is not None})
    assert ran == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert gradients[1].keys() == gradients[2].keys()
    results = [{"y": y} | by_name for y, by_name in zip(outputs, gradients, strict=True)]
    for key, expected in results[1].items():
        share = (results[2][key] - expected).norm() / expected.norm()
        assert share < (2**-8 if key in ("y", "conv1.weight") else 1e-3), (key, share.item())


def build(keys: dict[str, Any], fused: bool) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**keys, "fused_norm": fused, "fused_stem": fused})
    model = build_model(config, 10, image_size=10).to(DEVICE).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize(
    "keys", [{"name": "speednet94", "activation": "silu"}, {"name": "speednet96"}], ids=lambda k: k["name"]
)
def test_values_and_gradients_are_those_of_pytorch(keys: dict[str, Any], launches: list[str]) -> None:
    plain, fused = build(keys, False), build(keys, True)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (plain, fused)]
    assert shapes[0] == shapes[1]
    images = torch.randn(16, 3, 10, 10).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.arange(16, device=DEVICE) % 10
    logits = []
    for model in (plain, fused):
        logits.append(model(images))
        F.cross_entropy(8 * logits[-1], labels).backward()
    norms = 3 if keys["name"] == "speednet94" else 6
    counts = {"stem": 1, "pool": 3, "norm": norms, "pool backward": 3, "norm backward": norms}
    assert {name: launches.count(name) for name in launches} == counts
    assert_parity(logits[1], logits[0], "network, fused norm", torch.float32)
    for name, parameter in plain.named_parameters():
        other = fused.get_parameter(name)
        if not parameter.requires_grad:
            assert parameter.grad is None and other.grad is None
            continue
        assert parameter.grad is not None and other.grad is not None
        difference = (other.grad - parameter.grad).norm() / parameter.grad.norm()
        assert math.isfinite(difference), name
        assert_parity(difference, difference * 0, "network, share of a gradient, fused norm", torch.float32)
    for (name, buffer), (_, other) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        if "running" in name:
            assert_parity(other, buffer, "network, fused norm", torch.float32)
    fused.load_state_dict(plain.state_dict())
    launches.clear()
    logits = [model.eval()(images) for model in (plain, fused)]
    assert torch.equal(*logits) and not launches  # evaluation is PyTorch's own, unless it is asked for
    with torch.no_grad(), kernels_in_evaluation(fused):
        on_kernels = fused(images)
    assert {name: launches.count(name) for name in launches} == {"stem": 1, "inference": 3 + norms}
    assert_parity(on_kernels, logits[0], "network, fused norm", torch.float32)
