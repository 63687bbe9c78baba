"""Tests every network family: published parameter counts, shapes, gradients, and the blocks."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pipeline.config import ModelConfig
from pipeline.config.model import NETWORKS, SINGLE_FORM_NETWORKS, SMALLEST_IMAGES, SPEED_NETWORKS
from pipeline.models import DavidNet, ResNet, SpeedNet, build_model, cam_target_layer, num_parameters
from pipeline.models.blocks import Block, BlockOptions, PreactivationBasicBlock, PreactivationBottleneckBlock
from pipeline.models.families import FAMILIES
from pipeline.models.layers import NormAct, NormReluPool, PadShortcut, SqueezeExcitation, StemConv
from pipeline.models.speednet import Whitening
from tests.norms import normed, randomise_norms
from tests.parity.tolerances import assert_parity

# one of each kind of block and option, small enough to train
VARIANTS = [
    {"name": "resnet20", "shortcut": "B"},
    {"name": "resnet20", "stem": "imagenet"},
    {"name": "resnet20", "squeeze_excitation": 2},
    {"name": "resnet20", "stochastic_depth": 0.2, "blur_pool": True},
    {"name": "resnet20", "preactivation": True, "shortcut": "A"},
    {"name": "wrn16", "stochastic_depth": 0.2, "blur_pool": True, "squeeze_excitation": 2},
    {"name": "resnet20", "preactivation": True, "squeeze_excitation": 2, "stem": "imagenet"},
    {"name": "plain20"},
    {"name": "plain20", "squeeze_excitation": 2},
    {"name": "wrn16", "width": 2},
    {"name": "resnet50", "shortcut": "A"},
    {"name": "resnet50", "groups": 32, "width": 2},
    {"name": "resnet50", "preactivation": True},
    {"name": "davidnet"},
    {"name": "speednet94", "activation": "silu"},
    {"name": "speednet96"},
]


def build(num_classes: int = 10, image_size: int = 32, seed: int = 0, **keys) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(ModelConfig.model_validate(keys), num_classes, image_size=image_size)


def name_of(keys: dict) -> str:
    return " ".join(str(value) for value in keys.values())


@pytest.fixture(params=VARIANTS, ids=name_of)
def keys(request: pytest.FixtureRequest) -> dict:
    return request.param


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet20", (269_722, 272_474)),
        ("resnet32", (464_154, 466_906)),
        ("resnet44", (658_586, 661_338)),
        ("resnet56", (853_018, 855_770)),
        ("resnet110", (1_727_962, 1_730_714)),
    ],
)
def test_parameters_with_shortcuts_a_and_b(name: str, counts: tuple[int, int]):
    with torch.device("meta"):
        assert tuple(num_parameters(build(name=name, shortcut=option)) for option in "AB") == counts
        plain = name.replace("resnet", "plain")
        if plain in FAMILIES:  # option A has no parameters, like a network without shortcuts
            assert num_parameters(build(name=plain)) == counts[0]


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"name": "resnet34"}, 21_797_672),
        ({"name": "resnet50"}, 25_557_032),
        ({"name": "resnet101"}, 44_549_160),
        ({"name": "resnet152"}, 60_192_808),
        ({"name": "resnet50", "groups": 32, "width": 2}, 25_028_904),  # ResNeXt-50 32x4d
        ({"name": "resnet101", "groups": 32, "width": 4}, 88_791_336),  # ResNeXt-101 32x8d
        ({"name": "resnet50", "width": 2}, 68_883_240),  # Wide ResNet-50-2
        ({"name": "resnet50", "squeeze_excitation": 16}, 28_088_024),
    ],
    ids=str,
)
def test_parameters_with_the_imagenet_stem(keys: dict, count: int):
    with torch.device("meta"):
        assert num_parameters(build(1000, 224, **keys)) == count


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"name": "resnet34"}, 21_282_122),
        ({"name": "resnet50"}, 23_520_842),
        ({"name": "davidnet"}, 6_573_120),
        ({"name": "speednet94"}, 1_971_352),
        ({"name": "speednet96"}, 9_915_416),
        ({"name": "wrn28", "width": 10}, 36_479_194),
        ({"name": "wrn40", "width": 4}, 8_949_210),
        ({"name": "wrn16", "width": 8}, 10_961_370),
    ],
    ids=str,
)
def test_parameters_for_cifar10(keys: dict, count: int):
    with torch.device("meta"):
        assert num_parameters(build(**keys)) == count


def test_every_name_is_built():
    assert set(FAMILIES) | set(SINGLE_FORM_NETWORKS) == set(NETWORKS)
    with torch.device("meta"):
        for name in NETWORKS:
            assert build(7, name=name).get_parameter("head.weight").shape[0] == 7


@pytest.mark.parametrize(
    ("name", "size", "stem"),
    [("resnet18", 64, "cifar"), ("resnet18", 65, "imagenet"), ("resnet20", 224, "cifar")],
)
def test_the_stem_follows_the_size_of_the_images(name: str, size: int, stem: str):
    model = build(image_size=size, name=name)
    assert isinstance(model, ResNet)
    assert any(isinstance(module, NormReluPool) for module in model.stem) == (stem == "imagenet")


def test_the_smallest_images_that_a_network_takes(keys: dict):
    model, least = build(**keys).eval(), SMALLEST_IMAGES.get(keys["name"], 1)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, least, least)).shape == (1, 10)
        if least > 1:
            with pytest.raises(RuntimeError):
                model(torch.zeros(1, 3, least - 1, least - 1))


def test_variants_train(keys: dict):
    """Every parameter gets a gradient if none starts at zero; odd sizes work; the shape is right."""
    model = build(5, zero_init_residual=False, **keys)
    assert model.eval()(torch.randn(1, 3, 33, 17)).shape == (1, 5)
    model.train()
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the filters of a whitening, the scales of its network's norms
            assert keys["name"].startswith("speednet") and parameter.grad is None, name
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_no_activation_is_changed_after_it_was_made(keys: dict):
    model = build(zero_init_residual=False, **keys)
    made: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def keep(where: str):
        def hook(_: nn.Module, __: object, output: torch.Tensor) -> None:
            made.append((where, output, output.detach().clone()))

        return hook

    for where, module in model.named_modules():
        module.register_forward_hook(keep(where))
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert len(made) > 15
    for where, output, copy in made:
        assert torch.equal(output, copy), where


def test_zero_init_makes_blocks_identities_that_can_learn(keys: dict):
    model = build(**keys)
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if keys["name"] in ("plain20", *SINGLE_FORM_NETWORKS):  # without a shortcut, a zero stops the signal
        assert all(module.weight.all() for module in model.modules() if isinstance(module, NormAct))
        return
    for block in blocks:
        x = torch.randn(
            2, next(module for module in block.modules() if isinstance(module, nn.Conv2d)).in_channels, 8, 8
        )
        assert block.shortcut is not None
        if isinstance(block, PreactivationBasicBlock | PreactivationBottleneckBlock):
            expected = block.shortcut(block.bn1(x) if block.projects else x)
        else:
            expected = F.relu(block.shortcut(x))
        torch.testing.assert_close(block(x), expected)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    stopped = [
        name
        for name, parameter in model.named_parameters()
        if not parameter.any() and not name.endswith("bias")
    ]
    assert len(stopped) == len(blocks)
    for name in stopped:
        gradient = model.get_parameter(name).grad
        assert gradient is not None and gradient.any(), name


def test_fused_norm_is_the_same_network(keys: dict, monkeypatch: pytest.MonkeyPatch):
    """Keys are the same, every norm is ours; outputs and gradients of the operators agree within rounding."""
    plain, fused = (
        build(zero_init_residual=False, **keys, fused_norm=value, fused_stem=value) for value in (False, True)
    )
    assert plain.state_dict().keys() == fused.state_dict().keys()
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, NormAct) and norm.fused for norm in norms)
    for layer in (NormAct, StemConv, Whitening):
        monkeypatch.setattr(layer, "_uses_kernels", lambda self, _: self.fused and self.training)
    for model in (plain, fused):
        randomise_norms(model)
    fused.load_state_dict(plain.state_dict())
    images = torch.randn(8, 3, 24, 24).contiguous(memory_format=torch.channels_last)
    outputs = []
    for model in (plain, fused):
        torch.manual_seed(0)  # stochastic depth drops the same images
        outputs.append(model(images))
    assert_parity(outputs[1], outputs[0], "network, fused norm", torch.float32)
    for output in outputs:
        output.square().sum().backward()
    for parameter, other in zip(plain.parameters(), fused.parameters(), strict=True):
        if (
            parameter.grad is None or other.grad is None
        ):  # the filters of a whitening, the scales of its network
            assert keys["name"] in SPEED_NETWORKS and not (parameter.requires_grad or other.requires_grad)
            continue
        difference = (other.grad - parameter.grad).norm() / parameter.grad.norm()
        assert_parity(
            difference, torch.tensor(0.0), "network, share of a gradient, fused norm", torch.float32
        )


def test_the_layer_for_grad_cam_is_what_the_head_reads(keys: dict):
    model = build(**keys).eval()
    saved: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        saved.append(output)

    cam_target_layer(model).register_forward_hook(keep)
    logits = model(torch.randn(2, 3, 32, 32))
    (features,) = saved
    assert features.ndim == 4 and features.shape[2] > 1
    assert isinstance(model, SpeedNet) or (features >= 0).all()
    if isinstance(model, SpeedNet):
        expected = model.head(features.amax((2, 3))) * model.logit_scale
    elif isinstance(model, DavidNet):
        expected = model.head(features.amax((2, 3))) * 0.125
    else:
        assert isinstance(model, ResNet)
        expected = model.head(features.mean((2, 3)))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("option", ["A", "B"])
@pytest.mark.parametrize("channels", [16, 32])
def test_a_preactivated_block_is_what_the_paper_draws(channels: int, option):
    torch.manual_seed(0)
    stride = channels // 16
    block = PreactivationBasicBlock(16, channels, stride, BlockOptions(shortcut=option)).eval()
    randomise_norms(block)
    x = torch.randn(2, 16, 8, 8)
    activated = F.relu(normed(x, block.bn1))
    y = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    y = F.conv2d(F.relu(normed(y, block.bn2)), block.conv2.weight, padding=1)
    if channels == 16:
        past = x
    elif option == "A":
        past = PadShortcut(16, 32, 2)(x)
    else:
        past = F.conv2d(activated, block.get_parameter("shortcut.weight"), stride=2)
    torch.testing.assert_close(block(x), y + past)


def test_the_gate_is_torchvision_s():
    torch.manual_seed(0)
    ours, theirs = SqueezeExcitation(32, 16), torchvision.ops.SqueezeExcitation(32, 2)
    for name, layer in (("fc1", ours.squeeze), ("fc2", ours.excite)):
        theirs.get_parameter(f"{name}.weight").data.copy_(layer.weight[:, :, None, None])
        theirs.get_parameter(f"{name}.bias").data.copy_(layer.bias)
    x = torch.randn(2, 32, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x))


def test_davidnet_is_page_s():
    model = build(name="davidnet").eval()
    randomise_norms(model)
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(weights) == len(norms) == 8
    step = iter(zip(weights, norms, strict=True))

    def layer(x: torch.Tensor) -> torch.Tensor:
        weight, norm = next(step)
        return F.relu(normed(F.conv2d(x, weight, padding=1), norm))

    images = torch.randn(2, 3, 32, 32)
    x = F.max_pool2d(layer(layer(images)), 2)
    x = x + layer(layer(x))
    x = F.max_pool2d(layer(x), 2)
    x = F.max_pool2d(layer(x), 2)
    x = x + layer(layer(x))
    expected = F.max_pool2d(x, 4).flatten(1) @ model.get_parameter("head.weight").T * 0.125
    torch.testing.assert_close(model(images), expected)
