"""Tests the rates of the layers against timm's, and the layers of networks that timm does not have."""

import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_layer_decay
from torch import nn

from pipeline.config import ModelConfig, OptimizerConfig
from pipeline.models import build_model
from pipeline.models.pretrained import from_torchvision
from pipeline.optim.layer_decay import distances_from_head
from pipeline.optim.parts import partition
from tests.tiny import random_batch, tiny_config, tiny_trainer


def optimizer_config(*keys: str) -> OptimizerConfig:
    return tiny_config("optimizer.layer_decay=0.7", "optimizer.decay_norm_and_bias=false", *keys).optimizer


def settings(config: OptimizerConfig, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the factor of the rate and the weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (part.lr_ratio, part.weight_decay)
        for part in partition(config, model)
        for parameter in part.parameters
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_rates_and_decay_are_timms(name: str):
    config = optimizer_config("optimizer.weight_decay=0.05")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=10)
        torchvisions = torchvision.models.get_model(name, weights=None, num_classes=10)
        ours = build_model(ModelConfig(name=name, stem="imagenet"), 10, image_size=224)
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    expected = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in param_groups_layer_decay(theirs, weight_decay=0.05, layer_decay=0.7)
        for parameter in group["params"]
    }
    assert len({rate for rate, _ in expected.values()}) == {"resnet18": 10, "resnet50": 18}[name]
    for model, translate in ((ours, from_torchvision), (torchvisions, str), (theirs, str)):
        found = settings(config, model)
        assert found.keys() == {translate(key) for key in expected}
        for key, value in expected.items():
            assert found[translate(key)] == pytest.approx(value), key


@pytest.mark.parametrize(
    ("name", "last", "distances"),
    [
        ("vgg11", 10, {"features.0.bias": 10, "features.3.weight": 9, "classifier.6.bias": 0}),
        (
            "vit_b_16",
            13,
            {"class_token": 13, "encoder.layers.encoder_layer_11.ln_1.weight": 1, "encoder.ln.bias": 0},
        ),
        (
            "densenet121",
            62,
            {"features.conv0.weight": 62, "features.denseblock1.denselayer2.conv1.weight": 60},
        ),
        (  # its blocks are no elements of a sequence, but the branches inside of them are sequences
            "googlenet",
            12,
            {
                "conv1.conv.weight": 12,
                "inception3a.branch1.conv.weight": 9,
                "inception3a.branch3.1.bn.bias": 9,
            },
        ),
    ],
)
def test_layers_of_other_networks(name: str, last: int, distances: dict[str, int]):
    without_training_heads = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **without_training_heads)
    found = distances_from_head(network)
    assert max(found.values()) == last and set(found.values()) == set(range(last + 1))
    assert {key: found[key] for key in distances} == distances


def test_entries_of_groups_multiply_and_what_is_frozen_is_left_out():
    config = optimizer_config(
        "optimizer.groups=[{match: head.*, lr_ratio: 10}, {match: stages.2.*, lr_ratio: 2}]"
    )
    model = build_model(ModelConfig(name="resnet20"), 10)
    model.get_parameter("stem.0.weight").requires_grad_(False)
    found = settings(config, model)
    assert "stem.0.weight" not in found and len(found) == len(list(model.parameters())) - 1
    assert found["head.weight"][0] == pytest.approx(10)
    assert found["stages.2.2.conv1.weight"][0] == pytest.approx(2 * 0.7)
    assert found["stem.1.weight"][0] == pytest.approx(0.7**10)


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_in_training_each_layer_has_its_rate(name: str):
    trainer = tiny_trainer(tiny_config("optimizer.layer_decay=0.5", f"optimizer.name={name}"))
    trainer.step(random_batch())
    names = {id(parameter): key for key, parameter in trainer.state.model.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"].item()
        for group in trainer.state.optimizer.param_groups
        for parameter in group["params"]
    }
    peak = trainer.plan.lr_at(0)
    distances = distances_from_head(trainer.state.model)
    for key, rate in rates.items():
        assert rate == pytest.approx(peak * 0.5 ** distances[key]), key
