"""Tests files as other training programs write them: their keys, prefixes and heads, and what is beside the
weights."""

import argparse
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import build_model, load_pretrained
from tests.norms import randomise_norms

Weights = dict[str, torch.Tensor]


def build(num_classes: int = 10, name: str = "resnet20") -> nn.Module:
    return build_model(ModelConfig(name=name), num_classes)


@pytest.fixture
def weights() -> Weights:
    """Weights of our ResNet-20 with 10 classes, in torchvision's names."""
    torch.manual_seed(1)
    state = build().state_dict()
    return {_theirs(key): torch.rand_like(value.float()).to(value.dtype) for key, value in state.items()}


def _theirs(key: str) -> str:
    for ours, theirs in (
        ("stem.0", "conv1"),
        ("stem.1", "bn1"),
        ("head", "fc"),
        (".shortcut", ".downsample"),
    ):
        key = key.replace(ours, theirs)
    stage = key.split(".")[1] if key.startswith("stages.") else ""
    return key.replace(f"stages.{stage}", f"layer{int(stage) + 1}") if stage else key


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def load(content: Any, folder: Path, model: nn.Module | None = None) -> nn.Module:
    model = model or build()
    torch.save(content, folder / "weights.pth")
    load_pretrained(model, folder / "weights.pth")
    return model


def assert_taken(model: nn.Module, weights: Weights) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[_theirs(key)]), key


def halved(weights: Weights) -> Weights:
    return {key: value / 2 if value.is_floating_point() else value for key, value in weights.items()}


class _Other(nn.Module):
    """A network with a moving average of the torchvision references."""

    def __init__(self, weights: Weights):
        super().__init__()
        for key, value in weights.items():
            self._add(key.split("."), value)

    def _add(self, path: list[str], value: torch.Tensor) -> None:
        module: nn.Module = self
        for name in path[:-1]:
            if name not in dict(module.named_children()):
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.register_buffer(path[-1], value.clone())


def timm_s(weights: Weights) -> dict[str, Any]:
    """What `timm.utils.CheckpointSaver` writes for `train.py --model-ema --amp`."""
    return {
        "epoch": 3,
        "arch": "resnet20",
        "state_dict": halved(weights),
        "optimizer": _optimizer_s(weights),
        "version": 2,
        "args": argparse.Namespace(model="resnet20", lr=0.1, mean=None, output=PurePosixPath("out")),
        "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "state_dict_ema": weights,
        "metric": 71.5,
    }


def torchvision_s(weights: Weights) -> dict[str, Any]:
    """What `references/classification/train.py --model-ema` writes; its average has one more tensor."""
    average = AveragedModel(_Other(weights), multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    return {
        "model": halved(weights),
        "optimizer": _optimizer_s(weights),
        "lr_scheduler": {"milestones": defaultdict(int, {30: 1}), "last_epoch": 3, "_last_lr": [0.1]},
        "epoch": 3,
        "args": argparse.Namespace(model="resnet20", device=torch.device("cuda", 0), opt="sgd"),
        "model_ema": average.state_dict(),
        "scaler": {"scale": 65536.0},
    }


def lightning_s(weights: Weights) -> dict[str, Any]:
    """What Lightning writes for a module with `self.model` and a loss with weights for the classes."""
    return {
        "epoch": 3,
        "global_step": 128,
        "pytorch-lightning_version": "2.5.5",
        "state_dict": OrderedDict({**prefixed("model.", weights), "criterion.weight": torch.ones(10)}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_k_models": {"a.ckpt": torch.ones(())}}},
        "optimizer_states": [_optimizer_s(weights)],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "root": Path("data"), "torch": torch.__version__},
    }


def _optimizer_s(weights: Weights) -> dict[str, Any]:
    state = {number: {"momentum_buffer": value} for number, value in enumerate(weights.values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(state)}]}


PROGRAMS = {
    "timm": (timm_s, "took state_dict_ema (a moving average); did not take state_dict"),
    "torchvision": (
        torchvision_s,
        "took model_ema (a moving average); did not take model; stripped module. from the names; "
        "left out n_averaged",
    ),
    "lightning": (
        lightning_s,
        "took state_dict.model; stripped model. from the names; left out criterion.weight",
    ),
    "pytorch-cifar": (
        lambda weights: {"net": prefixed("module.", weights), "acc": np.float64(93.0), "epoch": 3},
        "took net; stripped module. from the names",
    ),
    "tutorial": (
        lambda weights: {"model_state_dict": weights, "loss": np.float32(0.5), "epoch": np.int64(3)},
        "took model_state_dict",
    ),
    "compiled under DDP": (
        lambda weights: {"state_dict": prefixed("module._orig_mod.", weights), "best_acc1": torch.ones(())},
        "took state_dict; stripped module._orig_mod. from the names",
    ),
    "only a part compiled and under DDP": (
        lambda weights: {key.replace("layer2.", "layer2._orig_mod.module."): weights[key] for key in weights},
        "stripped _orig_mod. and module. from the names",
    ),
    "average in Lightning's module": (
        lambda weights: {
            "state_dict": {**prefixed("net.", halved(weights)), **prefixed("net_ema.module.", weights)}
        },
        "took state_dict.net_ema (a moving average); did not take state_dict.net; "
        "stripped net_ema.module. from the names; left out net.conv1.weight, net.bn1.weight, net.bn1.bias "
        "and 125 more",
    ),
    "in lists": (lambda weights: [3, {"epoch": 1}, ("resnet20", {"weights": weights})], "took 2.1.weights"),
    "beside arrays": (
        lambda weights: {"params": weights, "confusion": np.eye(3), "names": np.array(["a", "b"])},
        "took params",
    ),
    "an average of the parameters alone": (
        lambda weights: {
            "model": weights,
            "shadow_ema": {key: value for key, value in weights.items() if "running" not in key},
        },
        "took model; did not take shadow_ema",
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_weights_in_a_checkpoint_of_another_program(
    program: str, weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write, said = PROGRAMS[program]
    model = load(write(weights), tmp_path)
    assert_taken(model, weights)
    assert caplog.messages == [f"model.weights: {tmp_path}/weights.pth: {said}"]
    assert caplog.records[0].levelname == ("WARNING" if "did not take" in said else "INFO")


def test_a_state_dict_alone_needs_no_word(weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert_taken(load(weights, tmp_path), weights)
    assert not caplog.messages


# --- the head -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["fc", "linear", "classifier", "head", "head.fc", "last_linear"])
@pytest.mark.parametrize("num_classes", [10, 7])
def test_the_head_may_have_another_name(
    head: str, num_classes: int, weights: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = build(num_classes)
    before = model.get_parameter("head.weight").clone()
    load({key.replace("fc.", f"{head}."): value for key, value in weights.items()}, tmp_path, model)
    expected = weights["fc.weight"] if num_classes == 10 else before
    assert torch.equal(model.get_parameter("head.weight"), expected)
    assert torch.equal(model.get_parameter("stem.0.weight"), weights["conv1.weight"])
    told = " ".join(caplog.messages)
    assert (f"took {head} for the head" in told) is (head not in ("fc", "head"))
    assert ("no head for 7 classes; the head (head) starts untrained" in told) is (num_classes == 7)


def test_pytorch_cifar_s_weights_give_its_logits(tmp_path: Path):
    """Its ResNet-18 is torchvision's with a stem for small images and two other names."""
    torch.manual_seed(0)
    reference = torchvision.models.resnet18(num_classes=10).eval()
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.MaxPool2d(1)
    randomise_norms(reference)
    names = {
        key: key.replace("downsample", "shortcut").replace("fc.", "linear.") for key in reference.state_dict()
    }
    net = {f"module.{names[key]}": value for key, value in reference.state_dict().items()}
    model = load({"net": net, "acc": 95.4, "epoch": 199}, tmp_path, build(name="resnet18")).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file", ["pth", "safetensors"])
def test_a_network_of_a_library_takes_prefixes_and_another_head(file: str, tmp_path: Path):
    source = torchvision.models.shufflenet_v2_x0_5(num_classes=10).state_dict()
    theirs = {f"net.{key.replace('fc.', 'classifier.')}": value for key, value in source.items()}
    path = tmp_path / f"weights.{file}"
    save_file(theirs, path) if file == "safetensors" else torch.save(theirs, path)
    model = build(10, "torchvision/shufflenet_v2_x0_5")
    load_pretrained(model, path)
    assert all(torch.equal(value, source[key]) for key, value in model.state_dict().items())


def test_of_two_heads_none_is_guessed(weights: Weights, tmp_path: Path):
    two = {**weights, "aux.weight": weights.pop("fc.weight"), "aux2.weight": torch.ones(10, 64)}
    with pytest.raises(UserError, match=r"the network has no aux.weight; the network has no aux2.weight"):
        load(two, tmp_path)


def test_two_names_of_one_tensor(weights: Weights, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"weights.pth holds .*fc.weight and .*head.weight, which are the same"
    ):
        load({**weights, "head.weight": weights["fc.weight"]}, tmp_path)


def test_weights_of_another_network_inside_a_checkpoint(weights: Weights, tmp_path: Path):
    with pytest.raises(UserError, match=r"is of another network .*the file has no "):
        load(timm_s(weights), tmp_path, build(name="resnet32"))
    with pytest.raises(UserError, match=r"is of another network .*the file has no "):
        load({"net": {"a.b": torch.ones(2)}}, tmp_path)
