"""Tests weights from files: torchvision's names, ours, and weights that do not fit. Nothing is downloaded."""

import io
import random
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torchvision
from safetensors.torch import save as safetensors_of
from safetensors.torch import save_file
from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import build_model, load_pretrained
from tests.norms import randomise_norms


def build(num_classes: int = 10, image_size: int = 224, **keys) -> nn.Module:
    return build_model(ModelConfig.model_validate(keys), num_classes, image_size=image_size).eval()


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
    reference = randomise_norms(torchvision.models.get_model(theirs, weights=None, num_classes=12)).eval()
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
    reference = randomise_norms(torchvision.models.resnet18(weights=None)).eval()
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
    model, other = randomise_norms(build(**keys)), build(**keys)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    load_pretrained(other, tmp_path / "weights.safetensors")
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    "wrap", [lambda state: {"model": state, "epoch": 3}, lambda state: {"state_dict": state}]
)
def test_wrappings_are_taken_off(wrap, tmp_path: Path):
    model, other = randomise_norms(build(name="resnet20")), build(name="resnet20")
    torch.save(
        wrap({f"module._orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}),
        tmp_path / "weights.pth",
    )
    load_pretrained(other, tmp_path / "weights.pth")
    assert torch.equal(other.get_parameter("head.weight"), model.get_parameter("head.weight"))


def test_a_head_that_fits_starts_anew_where_it_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As many classes may be other ones; for torchvision's names, too, and for a head of another name."""
    path = tmp_path / "weights.pth"
    for source in (torchvision.models.resnet18(num_classes=10), build(10, name="resnet18")):
        torch.save(source.state_dict(), path)
        model = build(10, name="resnet18")
        before = {name: model.get_parameter(name).clone() for name in ("head.weight", "stem.0.weight")}
        load_pretrained(model, path, reset_head=True)
        assert torch.equal(model.get_parameter("head.weight"), before["head.weight"])
        assert not torch.equal(model.get_parameter("stem.0.weight"), before["stem.0.weight"])
    assert caplog.messages == []


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


# --- files that hold no weights -----------------------------------------------------------------------------


class _Unsafe:
    def __reduce__(self):
        return print, ("unpickled",)


NO_WEIGHTS = {
    "a list": ([1, 2], "holds no state dict"),
    "nothing": ({}, "holds no state dict"),
    "numbers alone": ({"epoch": 3, "args": {"lr": 0.1}}, "holds no state dict"),
    "a tensor": (torch.ones(3), "holds no state dict"),
    "code": ({"code": _Unsafe()}, r"cannot be read \(it holds more than tensors: print, "),
    "a network": (
        nn.Linear(2, 2),
        r"cannot be read \(it holds more than tensors: torch.nn.modules.linear.Linear, ",
    ),
    "None as a name": ({None: torch.ones(3)}, "holds tensors under keys that are not names, such as None"),
    "numbers as names": (
        {"net": {0: torch.ones(3)}},
        "holds tensors under keys that are not names, such as 0",
    ),
}


@pytest.mark.parametrize("content", NO_WEIGHTS)
def test_files_that_hold_no_weights(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held, message = NO_WEIGHTS[content]
    torch.save(held, tmp_path / "weights.pth")
    remedy = r".*; give weights as .safetensors, or a state dict alone, as torch.save\(model.state_dict\(\)"
    with pytest.raises(UserError, match=f"^model.weights: {tmp_path}/weights.pth {message}{remedy}"):
        load_pretrained(build(name="resnet20"), tmp_path / "weights.pth")
    assert capsys.readouterr().out == ""


def _written(model: nn.Module, suffix: str) -> bytes:
    """Return a file of weights: one of `torch.save`, of the torch before 1.6, or of safetensors."""
    if suffix == "safetensors":
        return safetensors_of(model.state_dict())
    file = io.BytesIO()
    torch.save(model.state_dict(), file, _use_new_zipfile_serialization=suffix == "pth")
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
def test_damaged_files(suffix: str, tmp_path: Path):
    model, path = build(name="resnet20"), tmp_path / f"weights.{suffix}"
    whole, draw = _written(model, suffix), random.Random(4)
    broken = [b"", b"hello", bytes(100), *(whole[: draw.randrange(len(whole))] for _ in range(10))]
    for _ in range(20):  # many a flipped byte in the names, which stand in front
        flipped = bytearray(whole)
        for _ in range(20):
            flipped[draw.randrange(100, 3000)] = draw.randrange(256)
        broken.append(bytes(flipped))
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"^model.weights: {path} (cannot be read|is of another|holds)"):
            load_pretrained(model, path)


def test_a_number_that_was_flipped_on_the_disk(tmp_path: Path):
    """`torch.load` does not compare the checksums in the file."""
    model, path = build(name="resnet20"), tmp_path / "weights.pth"
    content = bytearray(_written(model, "pth"))
    content[content.index(model.get_parameter("head.weight").detach().numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read \(it is damaged: the checksum of .*data/"):
        load_pretrained(model, path)
    with patch("torch.serialization.get_crc32_options", return_value=False):  # written without any
        path.write_bytes(_written(model, "pth"))
    load_pretrained(model, path)


def test_paths_that_are_no_files_of_weights(tmp_path: Path):
    model = build(name="resnet20")
    with pytest.raises(UserError, match=r"nowhere.pth does not exist; give a .safetensors or .pth file"):
        load_pretrained(model, tmp_path / "nowhere.pth")
    for folder in ("folder", "folder.pth", "folder.safetensors"):
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match=f"^model.weights: {tmp_path}/{folder} cannot be read"):
            load_pretrained(model, tmp_path / folder)


# --- tensors that are no weights ----------------------------------------------------------------------------


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[3] = torch.nan
    return tensor


CONVERSIONS = {
    "int8": (lambda t: t.to(torch.int8), "is of type int8; give floating-point weights"),
    "bool": (lambda t: t.bool(), "is of type bool; give floating-point weights"),
    "int64": (lambda t: t.long(), "is of type int64; give floating-point weights"),
    "complex": (lambda t: t.to(torch.complex64), "is of type complex64; give floating-point weights"),
    "quantized": (
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "is of type qint8; give floating-point weights",
    ),
    "sparse": (lambda t: t.to_sparse(), "is float32 in sparse_coo layout; give a dense real tensor"),
    "sparse rows": (lambda t: t[:, 0, 0].to_sparse_csr(), None),
    "meta": (lambda t: t.to("meta"), "is on the meta device and has no values"),
    "nan": (_with_nan, "is NaN or infinite in 1 of 432 places"),
    "inf": (lambda t: t / 0.0, "is NaN or infinite in 432 of 432 places"),
    "more than float32": (lambda t: t.double().abs() + 1e300, "is NaN or infinite in 432 of 432 places"),
}


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:Sparse .* tensor support is in beta")
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_tensors_that_are_no_weights_are_named(conversion: str, tmp_path: Path):
    convert, message = CONVERSIONS[conversion]
    model = build(name="resnet20")
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    state["module.stem.0.weight"] = convert(state["module.stem.0.weight"])
    torch.save({"net": state}, tmp_path / "weights.pth")
    named = r"module.stem.0.weight " + message if message else "stem.0.weight is "
    with pytest.raises(UserError, match=f"^model.weights: {tmp_path}/weights.pth.*{named}"):
        load_pretrained(model, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str
)
def test_other_precisions_are_converted(dtype: torch.dtype, tmp_path: Path):
    model, other = randomise_norms(build(name="resnet20")), build(name="resnet20")
    state = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}  # the counters too
    torch.save(state, tmp_path / "weights.pth")
    load_pretrained(other, tmp_path / "weights.pth")
    assert torch.equal(other.get_parameter("head.weight"), state["head.weight"].float())


def test_a_head_that_is_not_taken_may_be_anything(tmp_path: Path):
    state = build(7, name="resnet20").state_dict()
    torch.save({**state, "head.weight": state["head.weight"] * torch.nan}, tmp_path / "weights.pth")
    load_pretrained(build(10, name="resnet20"), tmp_path / "weights.pth")
