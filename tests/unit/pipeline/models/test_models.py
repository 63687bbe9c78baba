"""Tests the networks: parameters, shapes, initialisation, and no in-place changes of activations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ModelConfig
from pipeline.models import ResNet, build_model, cam_target_layer, num_parameters
from pipeline.models.blocks import BasicBlock, BlockOptions
from pipeline.models.layers import NormAct, PadShortcut, Projection, global_max, make_shortcut
from tests.norms import normed
from tests.parity.tolerances import assert_parity

NAMES = [("resnet18", "B"), ("resnet20", "A"), ("resnet20", "B")]


def build(name: str = "resnet20", option: str = "A", num_classes: int = 10, **arguments) -> ResNet:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"name": name, "shortcut": option, **arguments})
    model = build_model(config, num_classes)
    assert isinstance(model, ResNet)
    return model


@pytest.mark.parametrize(
    ("name", "option", "count"),
    [("resnet18", "B", 11_173_962), ("resnet20", "A", 269_722), ("resnet20", "B", 272_474)],
)
def test_number_of_parameters(name: str, option: str, count: int):
    assert num_parameters(build(name, option)) == count


def test_number_of_parameters_by_hand():
    """Count parameters: no bias in convolutions, two numbers per channel in a norm, a bias in the head."""
    convolutions = (
        3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    )
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert num_parameters(build("resnet20", "A", num_classes=100)) == convolutions + norms + 64 * 100 + 100


@pytest.mark.parametrize(("name", "option"), NAMES)
def test_shapes(name: str, option: str):
    model = build(name, option, num_classes=7).eval()
    widths, depths = ((64, 128, 256, 512), (2,) * 4) if name == "resnet18" else ((16, 32, 64), (3,) * 3)
    features = model.stem(torch.randn(2, 3, 32, 24))
    assert features.shape == (2, widths[0], 32, 24)
    for number, (stage, width, depth) in enumerate(zip(model.stages, widths, depths, strict=True)):
        assert isinstance(stage, nn.Sequential) and len(stage) == depth
        features = stage(features)
        assert features.shape == (2, width, 32 >> number, 24 >> number)
    assert model(torch.randn(2, 3, 32, 24)).shape == (2, 7)
    assert cam_target_layer(model) is model.stages[-1]


@pytest.mark.parametrize("size", [8, 9, 15])
@pytest.mark.parametrize(("name", "option"), NAMES)
def test_odd_sizes_fit_both_ways_past_a_block(name: str, option: str, size: int):
    assert build(name, option)(torch.randn(2, 3, size, size)).isfinite().all()


def test_other_channels():
    model = build_model(ModelConfig(name="resnet20"), num_classes=10, in_channels=1)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("name", "option"), NAMES)
def test_zero_init_makes_every_block_start_as_its_shortcut(name: str, option: str):
    model = build(name, option)
    blocks = [module for module in model.modules() if isinstance(module, BasicBlock)]
    assert blocks
    for block in blocks:
        assert not block.bn2.weight.any() and (block.bn1.weight == 1).all()
        x = torch.randn(2, block.conv1.in_channels, 8, 8)
        assert block.shortcut is not None and torch.equal(block(x), F.relu(block.shortcut(x)))
    for block in (
        module
        for module in build(name, option, zero_init_residual=False).modules()
        if isinstance(module, BasicBlock)
    ):
        assert (block.bn2.weight == 1).all()


def test_convolutions_start_with_the_deviation_of_he():
    for module in build("resnet18", "B").modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_initialisation_follows_the_seed():
    one, same = build().state_dict(), build().state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    torch.manual_seed(1)
    other = build_model(ModelConfig(name="resnet20", shortcut="A"), 10)
    assert not torch.equal(one["head.weight"], other.get_parameter("head.weight"))


def test_option_a_copies_every_second_pixel_between_zero_channels():
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.float32).reshape(2, 3, 5, 4)
    y = PadShortcut(3, 6, 2)(x)
    assert y.shape == (2, 6, 3, 2)
    assert torch.equal(y[:, 1:4], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 4:].any()


def test_shortcuts():
    assert isinstance(make_shortcut("A", 16, 16, 1, False), nn.Identity)
    assert isinstance(make_shortcut("A", 16, 32, 2, False), PadShortcut)
    projection = make_shortcut("B", 16, 32, 2, False)
    assert isinstance(projection, Projection)
    assert projection(torch.randn(1, 16, 9, 9)).shape == (1, 32, 5, 5)
    assert projection(torch.randn(1, 16, 9, 9)).min() < 0  # no ReLU on the shortcut


def test_a_block_is_what_the_paper_draws():
    torch.manual_seed(0)
    block = BasicBlock(16, 32, 2, BlockOptions()).eval()
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)

    x = torch.randn(2, 16, 8, 8)
    y = F.relu(normed(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1))
    y = normed(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
    past = normed(F.conv2d(x, block.get_parameter("shortcut.0.weight"), stride=2), norms[-1])
    torch.testing.assert_close(block(x), F.relu(y + past))


def tensors(output: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("fused_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "option"), NAMES)
def test_no_activation_is_changed_after_it_was_made(name: str, option: str, training: bool, fused_norm: bool):
    """An in-place addition to a stage's output would give Grad-CAM a wrong map without an error."""
    model = build(name, option, zero_init_residual=False, fused_norm=fused_norm).train(training)
    made: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for where, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, output, where=where: made.extend(
                (where, tensor, tensor.detach().clone()) for tensor in tensors(output)
            )
        )
    model(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).sum().backward()
    assert len(made) > 30
    for where, output, copy in made:
        assert torch.equal(output, copy), where


@pytest.mark.parametrize(("name", "option"), NAMES)
def test_the_fused_norm_is_the_same_network(name: str, option: str):
    """The keys and the values in evaluation are the same; in training the values agree within rounding."""
    plain, fused = (
        build(name, option, zero_init_residual=False, fused_norm=fused) for fused in (False, True)
    )
    fused.load_state_dict(plain.state_dict())
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)).contiguous(
        memory_format=torch.channels_last
    )
    outputs = [model(images) for model in (plain, fused)]
    assert_parity(outputs[1], outputs[0], "network, fused norm", torch.float32)
    for output in outputs:
        output.square().sum().backward()
    for parameter, other in zip(plain.parameters(), fused.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        scale = parameter.grad.abs().max()
        assert_parity(other.grad / scale, parameter.grad / scale, "network, fused norm", torch.float32)
    for (key, buffer), (_, other) in zip(plain.named_buffers(), fused.named_buffers(), strict=True):
        if "running" in key:
            assert_parity(other, buffer, "network, fused norm", torch.float32)
    fused.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(images), fused.eval()(images))


def test_a_norm_that_ends_a_branch_has_no_relu_of_its_own():
    x = torch.randn(4, 3, 5, 5)
    norm = NormAct(3, activation="none")
    torch.testing.assert_close(norm(x), F.batch_norm(x, None, None, training=True))
    torch.testing.assert_close(
        NormAct(3)(x, residual=x), F.relu(F.batch_norm(x, None, None, training=True) + x)
    )


def test_channels_last_survives_the_network():
    model = build().to(memory_format=torch.channels_last)
    features = model.stages(model.stem(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)))
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_the_compiled_maximum_of_unrounded_values_has_a_gradient():
    """The compiler fuses the activation into the maximum, and does not round the activation's output."""

    def maxima(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return global_max(F.silu(x * scale))

    torch.manual_seed(0)
    images = torch.randn(4, 8, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    scale = torch.tensor(1.1, dtype=torch.bfloat16)
    gradients = []
    for function in (maxima, torch.compile(maxima)):
        x = images.clone().requires_grad_()
        function(x, scale).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert gradients[1].count_nonzero() == 4 * 8
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_global_maximum_is_that_of_torch(side: int):
    torch.manual_seed(0)
    x = torch.randn(2, 4, side, side)
    x[0, 0, 0, 0] = x[1, 1, -1, -1] = float("nan")
    x[0, 1] = 1.0  # the first position gets all of the gradient
    gradients = []
    for function in (global_max, lambda y: y.flatten(2).max(2).values):
        leaf = x.clone().requires_grad_()
        maxima = function(leaf)
        torch.testing.assert_close(maxima, x.amax((2, 3)), equal_nan=True, rtol=0, atol=0)
        (maxima * torch.arange(1, 9).view(2, 4)).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_first_of_equal_maxima_has_the_gradient():
    x = torch.ones(2, 3, 2, 2, requires_grad=True)
    assert global_max(x).tolist() == [[1.0] * 3] * 2
    global_max(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten(2)[0, 0].tolist() == [1, 0, 0, 0]
