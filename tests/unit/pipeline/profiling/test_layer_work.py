"""Checks the least work of a network against counts by hand and against torch's own counter."""

import pytest
import torch
from torch import nn

from pipeline.config import ModelConfig, MuonConfig, SgdConfig
from pipeline.models import build_model
from pipeline.models.flops import count_flops
from pipeline.models.layers import NormAct, PoolNormAct
from pipeline.models.speednet import Whitening
from pipeline.optim.parts import partition
from pipeline.profiling.layer_work import (
    FORWARD,
    INPUT_GRADIENT,
    NORM_BACKWARD,
    NORM_FORWARD,
    OPTIMIZER,
    PRODUCT,
    WEIGHT_GRADIENT,
    LayerPass,
    Work,
    layer_passes,
    optimizer_passes,
)


class Small(nn.Module):
    """Images of 3x8x8, 4 channels, 8 channels of 4x4 after a pool, 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = NormAct(4, activation="silu")
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm2 = PoolNormAct(8)
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm1(self.conv1(images), residual=torch.cat([images, images[:, :1]], 1))
        x = self.norm2(self.conv2(x))
        assert isinstance(x, torch.Tensor)
        return self.head(x.mean((2, 3)))


def counted(model: nn.Module, training: bool = True) -> list[tuple[str, str, float, float]]:
    passes = layer_passes(model, (3, 8, 8), batch_size=10, element_bytes=2, training=training)
    return [(each.layer, each.kind, each.flops, each.num_bytes) for each in passes]


def test_a_small_network_by_hand():
    images, first, second, pooled = 3 * 64, 4 * 64, 8 * 64, 8 * 16
    conv1, conv2 = 10 * 2 * first * 27, 10 * 2 * second * 36
    bytes1, bytes2 = 2 * (10 * (images + first) + 108), 2 * (10 * (first + second) + 288)
    head = (10 * 2 * 80, 2 * (10 * 18 + 90))
    expected = [
        ("conv1", FORWARD, conv1, bytes1),
        ("conv1", WEIGHT_GRADIENT, conv1, bytes1),
        ("norm1", NORM_FORWARD, 0, 2 * 10 * 3 * first),
        ("norm1", NORM_BACKWARD, 0, 2 * 10 * 5 * first),  # dy, x, residual twice for SiLU, dx
        ("conv2", FORWARD, conv2, bytes2),
        ("conv2", INPUT_GRADIENT, conv2, bytes2),
        ("conv2", WEIGHT_GRADIENT, conv2, bytes2),
        ("norm2", NORM_FORWARD, 0, 2 * 10 * (second + 2 * pooled)),
        ("norm2", NORM_BACKWARD, 0, 2 * 10 * (second + 2 * pooled)),
        ("head", PRODUCT, *head),
        ("head", PRODUCT, *head),
        ("head", PRODUCT, *head),
    ]
    assert counted(Small()) == expected
    evaluation = [row for row in expected if row[1] in (FORWARD, NORM_FORWARD, PRODUCT)][:-2]
    evaluation[3] = ("norm2", NORM_FORWARD, 0, 2 * 10 * (second + pooled))  # keeps no pooled activation
    assert counted(Small(), training=False) == evaluation


def test_frozen_layers_have_no_gradients():
    model = Small()
    for module in (model.conv1, model.norm1):
        module.requires_grad_(False)
    ways = {(layer, kind) for layer, kind, *_ in counted(model)}
    assert ("conv1", WEIGHT_GRADIENT) not in ways and ("norm1", NORM_BACKWARD) not in ways
    assert ("conv2", INPUT_GRADIENT) not in ways and ("conv2", WEIGHT_GRADIENT) in ways


@pytest.mark.parametrize("trained", [True, False])
def test_a_whitening_trains_a_bias_alone(trained: bool):
    """The gradient of the bias takes no products, but makes the next layer compute that of its input."""
    model = nn.Sequential(Whitening(3), nn.Conv2d(24, 2, 1, bias=False), nn.Flatten())
    bias = model[0].bias
    assert isinstance(bias, nn.Parameter)
    bias.requires_grad = trained
    white, flops, next_flops = 24 * 49, 10 * 2 * 24 * 49 * 12, 10 * 2 * 2 * 49 * 24
    of_bias = [("0", WEIGHT_GRADIENT, 0, 2 * (10 * (192 + white) + 24))]
    next_layer = 2 * (10 * (white + 2 * 49) + 48)
    assert counted(model) == [
        ("0", FORWARD, flops, 2 * (10 * (192 + white) + 12 * 24 + 24)),
        *of_bias * trained,
        ("1", FORWARD, next_flops, next_layer),
        *[("1", INPUT_GRADIENT, next_flops, next_layer)] * trained,
        ("1", WEIGHT_GRADIENT, next_flops, next_layer),
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "davidnet", "torchvision/resnet18"])
def test_the_operations_are_those_of_torchs_counter(name: str):
    model = build_model(ModelConfig(name=name), 10, 3, 64)
    passes = layer_passes(model, (3, 64, 64), 4, 2)
    assert sum(each.flops for each in passes) == 4 * count_flops(model, (3, 64, 64), backward=True)[""]


def test_a_norm_of_a_shortcut_is_a_part_of_the_one_that_adds_it():
    """By hand: a block of two norms and a projection moves 2 + 3 passes forward, 3 + 5 backward."""
    model = build_model(ModelConfig(name="resnet18"), 10, 3, 32)
    block = [each for each in layer_passes(model, (3, 32, 32), 1, 2) if each.layer.startswith("stages.1.0.")]
    names = {each.layer for each in block}
    assert len(names) == 6, names  # three convolutions and their norms
    size = 2 * 128 * 16 * 16
    moved = {
        kind: sum(each.num_bytes for each in block if each.kind == kind)
        for kind in (NORM_FORWARD, NORM_BACKWARD)
    }
    assert moved == {NORM_FORWARD: 5 * size, NORM_BACKWARD: 8 * size}


def test_a_norm_before_a_pool_writes_the_pooled_activation_alone():
    """By hand, in activations before the pool: x and a quarter; a quarter, x and dx."""
    model = build_model(ModelConfig(name="resnet18"), 10, 3, 224)
    stem = {each.kind: each for each in layer_passes(model, (3, 224, 224), 1, 2) if each.layer == "stem.1"}
    size = 2 * 64 * 112 * 112
    assert stem[NORM_FORWARD].num_bytes == 1.25 * size
    assert stem[NORM_BACKWARD].num_bytes == 2.25 * size


def test_a_pass_takes_its_operations_or_its_bytes():
    best = Work(flops=1000.0, num_bytes=10.0)
    assert LayerPass("", FORWARD, 500.0, 1.0).seconds(best) == 0.5
    assert LayerPass("", FORWARD, 500.0, 20.0).seconds(best) == 2.0


def test_the_updates_of_the_weights():
    model = Small()
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    config = SgdConfig()
    assert optimizer_passes(config, partition(config, model)) == [
        LayerPass("", OPTIMIZER, 0.0, 4 * 5 * sum(sizes.values()))
    ]
    muon = MuonConfig(name="muon", newton_schulz_steps=3)
    parts = partition(muon, model)
    for name in ("weight", "bias"):
        getattr(model.norm1, name).requires_grad = False
    model.half()
    update, iterations = optimizer_passes(muon, parts)
    assert update.num_bytes == 2 * 5 * (sum(sizes.values()) - 8)
    assert (iterations.flops, iterations.num_bytes) == (3 * (8 * 8 * 36 * 3 + 8**3), 0.0)  # of conv2, 8 x 36
