"""Tests the networks of airbench against the same networks written with torch's functions alone."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models import SpeedNet
from pipeline.models.speednet import ConvGroup, Whitening
from pipeline.training.build import build_state
from tests.tiny import connect, tiny_config, tiny_splits


def randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "activation"), [("speednet94", "silu"), ("speednet96", "gelu")])
def test_the_network_is_airbench_s(name: str, activation: Literal["gelu", "silu"]):
    torch.manual_seed(0)
    model = SpeedNet(name, 10, activation=activation).eval()
    randomise(model)
    weights = {key: value for key, value in model.state_dict().items() if not key.endswith("tracked")}
    act = {"gelu": F.gelu, "silu": F.silu}[activation]

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        mean, var, bias = (weights[f"{key}.{part}"] for part in ("running_mean", "running_var", "bias"))
        return (x - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None] + bias[:, None, None]

    images = torch.randn(2, 3, 32, 32)
    x = F.gelu(F.conv2d(images, weights["stem.weight"], weights["stem.bias"]))
    for stage in range(3):
        key = f"stages.{stage}"
        x = first = act(
            norm(F.max_pool2d(F.conv2d(x, weights[f"{key}.conv1.weight"], padding=1), 2), f"{key}.norm1")
        )
        x = act(norm(F.conv2d(x, weights[f"{key}.conv2.weight"], padding=1), f"{key}.norm2"))
        if name == "speednet96":
            x = act(norm(F.conv2d(x, weights[f"{key}.conv3.weight"], padding=1), f"{key}.norm3") + first)
    assert x.shape[2:] == (3, 3)
    logits = F.max_pool2d(x, 3).flatten(1) @ weights["head.weight"].T
    expected = logits / 256 if name == "speednet94" else logits / 9
    torch.testing.assert_close(model(images), expected)


def test_whitened_patches_are_uncorrelated_and_of_variance_1():
    torch.manual_seed(0)
    images = F.avg_pool2d(torch.randn(64, 3, 34, 34), 3, 1)  # neighbours are correlated
    layer = Whitening(3)
    layer.fit(images)
    outputs = layer(images)
    assert outputs.shape == (64, 24, 31, 31)
    half = outputs[:, :12].transpose(0, 1).flatten(1)
    covariance = half @ half.T / half.shape[1]
    patches = F.unfold(images, 2).transpose(0, 1).flatten(1)
    eigenvalues = torch.linalg.eigvalsh(patches @ patches.T / patches.shape[1]).flip(0)
    torch.testing.assert_close(covariance, torch.diag(eigenvalues / (eigenvalues + 5e-4)), atol=2e-3, rtol=0)
    assert torch.equal(outputs[:, 12:], -outputs[:, :12])


def test_convolutions_start_as_identities():
    group = ConvGroup(24, 64, 2, "gelu", 0.1)
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(group.conv1(x)[:, :24], x)
    assert group.conv1.weight[24:].std() > 0


def test_the_head_of_the_small_network_starts_with_standard_deviation_1():
    assert SpeedNet("speednet94", 10).head.weight.std().item() == pytest.approx(1)


def test_a_run_starts_from_the_whitening_of_its_own_images():
    config = tiny_config("model.name=speednet94", "data.image_size=9")
    splits = tiny_splits(config)
    state = build_state(config, splits, connect(config))
    assert isinstance(state.model, SpeedNet)
    pixels = torch.from_numpy(splits.train.pixels(torch.arange(len(splits.train)).numpy())) / 255
    images = ((pixels - torch.tensor(splits.mean)) / torch.tensor(splits.std)).permute(0, 3, 1, 2)
    layer = Whitening(3)
    layer.fit(images)
    torch.testing.assert_close(state.model.stem.weight, layer.weight)
    assert not any(
        state.model.stem.weight is p for group in state.optimizer.param_groups for p in group["params"]
    )
