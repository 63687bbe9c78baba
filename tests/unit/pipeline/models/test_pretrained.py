"""Tests weights from files: torchvision's names, ours, and weights that do not fit. Nothing is downloaded."""

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import build_model, load_pretrained


def build(num_classes: int = 10, image_size: int = 224, **keys) -> nn.Module:
    return build_model(ModelConfig.model_validate(keys), num_classes, image_size=image_size).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Give norms and their statistics random values, also where a block would start as its shortcut."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("theirs", "keys"),
    [
        ("resnet18", {"name": "resnet18"}),
        ("resnet34", {"name": "resnet34"}),
        ("resnet50", {"name": "resnet50"}),
        ("resnext50_32x4d", {"name": "resnet50", "groups": 32, "width": 2}),
    ],
)
def test_torchvision_s_weights_give_torchvision_s_logits(
    theirs: str, keys: dict, suffix: str, tmp_path: Path
):
    torch.manual_seed(0)
    reference = randomise(torchvision.models.get_model(theirs, weights=None, num_classes=12))
    path = tmp_path / f"weights.{suffix}"
    save_file(reference.state_dict(), path) if suffix == "safetensors" else torch.save(
        reference.state_dict(), path
    )
    model = build(12, **keys)
    load_pretrained(model, path)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference(images)
        torch.testing.assert_close(
            model(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )


def test_torchvision_s_weights_without_a_head_are_read_too(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    reference = randomise(torchvision.models.resnet18(weights=None))
    torch.save(
        {key: tensor for key, tensor in reference.state_dict().items() if not key.startswith("fc.")},
        tmp_path / "weights.pth",
    )
    model = build(name="resnet18")
    load_pretrained(model, tmp_path / "weights.pth")
    assert torch.equal(
        model.get_parameter("stages.3.1.conv2.weight"), reference.get_parameter("layer4.1.conv2.weight")
    )
    assert "the head (head) starts untrained" in caplog.text


@pytest.mark.parametrize("keys", [{"name": "resnet20"}, {"name": "davidnet"}, {"name": "wrn16"}], ids=str)
def test_our_own_weights_come_back(keys: dict, tmp_path: Path):
    model, other = randomise(build(**keys)), build(**keys)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    load_pretrained(other, tmp_path / "weights.safetensors")
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    "wrap", [lambda state: {"model": state, "epoch": 3}, lambda state: {"state_dict": state}]
)
def test_wrappings_are_taken_off(wrap, tmp_path: Path):
    model, other = randomise(build(name="resnet20")), build(name="resnet20")
    torch.save(
        wrap({f"module._orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}),
        tmp_path / "weights.pth",
    )
    load_pretrained(other, tmp_path / "weights.pth")
    assert torch.equal(other.get_parameter("head.weight"), model.get_parameter("head.weight"))


@pytest.mark.parametrize("names", ["theirs", "ours"])
def test_a_head_for_other_classes_starts_anew_and_says_so(
    names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = torchvision.models.resnet18(num_classes=7) if names == "theirs" else build(7, name="resnet18")
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    model = build(10, name="resnet18")
    head = model.get_parameter("head.weight").clone()
    load_pretrained(model, path)
    assert torch.equal(model.get_parameter("head.weight"), head)
    key = "conv1.weight" if names == "theirs" else "stem.0.weight"
    assert torch.equal(model.get_parameter("stem.0.weight"), source.get_parameter(key))
    assert caplog.messages == [
        f"model.weights: {path} has no head for 10 classes; the head (head) starts untrained"
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"name": "resnet18", "stem": "cifar"},
            r"stem.0.weight is \(64, 3, 7, 7\) in the file and \(64, 3, 3, 3\).*model.stem",
        ),
        ({"name": "resnet34"}, "the file has no stages.0.2.conv1.weight; .* and [0-9]+ more"),
        (
            {"name": "resnet50"},
            r"stages.0.0.conv1.weight is \(64, 64, 3, 3\) in the file and \(64, 64, 1, 1\)",
        ),
        ({"name": "davidnet"}, "the file has no stem.0.weight"),
    ],
    ids=str,
)
def test_weights_of_another_network_are_refused(keys: dict, message: str, tmp_path: Path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    model = build(**keys)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=rf"model.weights: .*weights.pth is of another network.*{message}"):
        load_pretrained(model, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class _Unsafe:
    def __reduce__(self):
        return print, ("unpickled",)


def test_files_that_hold_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = build(name="resnet20")
    for name, content in (
        ("empty.pth", b""),
        ("text.pth", b"hello"),
        ("text.safetensors", b"hello"),
        ("zeros.pth", bytes(100)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"model.weights: .*{name} cannot be read"):
            load_pretrained(model, tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere.pth does not exist; give a .safetensors or .pth file"):
        load_pretrained(model, tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(model, tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        load_pretrained(model, tmp_path / "list.pth")
    torch.save({"code": _Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(
        UserError, match=r"model.weights: .* cannot be read \(.* holds more than tensors\); give weights as"
    ):
        load_pretrained(model, tmp_path / "unsafe.pth")
    assert capsys.readouterr().out == ""
