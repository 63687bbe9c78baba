"""Tests torchvision's and timm's names of weights, with files in place of the internet."""

import logging
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from timm.models import _registry as timms_registry
from torch import nn
from torchvision import models

from pipeline import __main__ as cli
from pipeline.atomic_io import sha256
from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models.hub_download import reach_hub
from pipeline.models.library_weights import (
    can_be_read_offline,
    names_library_weights,
    read_library_weights,
)
from pipeline.training.build import build_initial_model
from tests.tiny import tiny_config

CPU = torch.device("cpu")
OURS = ("model.name=resnet18", "model.shortcut=B", "model.stem=imagenet", "data.image_size=65")
TORCHVISIONS = ("model.name=torchvision/resnet18", "data.image_size=65")
V1 = "model.weights=IMAGENET1K_V1"
PRETRAINED = ("model.name=timm/resnet26t", "model.weights=pretrained")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give torch.hub an empty folder, and the Hugging Face Hub no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network here")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("pipeline.models.hub_download._PAUSE_S", 0.0)
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def published(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Publish other weights as torchvision's of ResNet-18; return the network that has them."""
    torch.manual_seed(7)
    model = models.resnet18(weights=None)
    file = tmp_path / "new.pth"
    torch.save(model.state_dict(), file)
    file = file.rename(tmp_path / f"resnet18-{sha256(file)[:8]}.pth")
    entry = models.ResNet18_Weights.IMAGENET1K_V1
    monkeypatch.setattr(entry, "_value_", replace(entry.value, url=file.as_uri()))
    return model


def initial(*keys: str, num_classes: int = 1000) -> nn.Module:
    return build_initial_model(tiny_config(*keys), num_classes, CPU)


def message_of(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keys", [OURS, TORCHVISIONS], ids=["ours", "torchvision"])
@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT"])
def test_torchvisions_names_are_read_and_cached(
    keys: tuple[str, ...], name: str, published: nn.Module, hub: Path
):
    model = initial(*keys, f"model.weights={name}").eval()
    images = torch.randn(2, 3, 65, 65)
    torch.testing.assert_close(model(images), published.eval()(images), rtol=1e-4, atol=1e-4)
    (cached,) = hub.iterdir()
    with patch("torch.hub.download_url_to_file", side_effect=AssertionError):
        initial(*keys, f"model.weights={name}")
    assert cached.name.startswith("resnet18-")


def test_the_head_for_other_classes_starts_anew(published: nn.Module, caplog: pytest.LogCaptureFixture):
    model = initial(*OURS, V1, num_classes=5)
    assert torch.equal(model.get_parameter("stages.3.1.conv2.weight"), published.layer4[1].conv2.weight)  # type: ignore[index,union-attr]
    assert "has no head for 5 classes; the head (head) starts untrained" in caplog.text


def test_a_file_of_that_name_comes_first(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(name="resnet18", weights="IMAGENET1K_V1")
    assert names_library_weights(config)
    torch.manual_seed(3)
    weights = initial(*OURS).state_dict()
    torch.save(weights, "IMAGENET1K_V1")
    assert not names_library_weights(config)
    assert torch.equal(initial(*OURS, V1).state_dict()["head.weight"], weights["head.weight"])


def test_a_cached_file_that_is_damaged_is_named(published: nn.Module, hub: Path):
    initial(*OURS, V1)
    (cached,) = hub.iterdir()
    torch.save(
        {key: value + 1 for key, value in published.state_dict().items()}, cached
    )  # readable, but another
    message = message_of(lambda: initial(*OURS, V1))
    assert all(part in message for part in ("model.weights", str(cached), "SHA-256", "remove it"))
    cached.write_bytes(cached.read_bytes()[:5000])
    assert "is damaged" in message_of(lambda: initial(*OURS, V1))


def test_a_download_with_another_hash_is_refused(published: nn.Module, tmp_path: Path, hub: Path):
    (source,) = tmp_path.glob("resnet18-*.pth")
    source.write_bytes(source.read_bytes()[:5000])
    message = message_of(lambda: initial(*OURS, V1))
    assert "model.weights" in message and "invalid hash value" in message
    assert not list(hub.iterdir())


def test_offline_is_one_message(published: nn.Module, tmp_path: Path, hub: Path):
    shutil.rmtree(hub, ignore_errors=True)
    (source,) = tmp_path.glob("resnet18-*.pth")
    source.unlink()
    message = message_of(lambda: initial(*OURS, V1))
    parts = ("model.weights", "IMAGENET1K_V1", "cannot be downloaded", "connect", str(hub / source.name))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ((*OURS, "model.weights=IMAGENET1K_V7"), ("no weights IMAGENET1K_V7 for resnet18", "IMAGENET1K_V1")),
        (("model.name=resnet20", V1), ("torchvision", "none for resnet20", "resnet50", "IMAGENET1K_V2")),
        (("model.name=resnet18", "model.width=2", V1), ("none for resnet18",)),
        (("model.name=timm/resnet18", V1), ("none for timm/resnet18", "give pretrained")),
        ((*OURS, "model.weights=pretrained"), ("for networks of timm, not for resnet18", "IMAGENET1K_V2")),
        (
            ("model.name=timm/resnet26t", "model.weights=pretrained"),
            ("cannot be downloaded", "no network here"),
        ),
        (("model.name=timm/test_vit5", "model.weights=pretrained"), ("has no network 'test_vit5'",)),
        (("model.name=timm/resnet10t.x", "model.weights=pretrained"), ("no network", "resnet10t")),
        (
            ("model.name=timm/mobilenetv2_035", "model.weights=pretrained"),
            ("no pretrained weights for mobilenetv2_035",),
        ),
        ((*OURS, "model.weights=imagenet1k_v1"), ("does not exist", "IMAGENET1K_V2", "`pretrained`")),
    ],
    ids=str,
)
def test_names_that_a_library_does_not_have(keys: tuple[str, ...], parts: tuple[str, ...], hub: Path):
    message = message_of(lambda: initial(*keys))
    assert message.startswith("model.") and all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("keys", "given", "needed"),
    [
        (("data.image_size=64",), "model.stem=cifar", "model.stem=imagenet"),
        (("model.shortcut=A", "model.squeeze_excitation=16"), "model.shortcut=A", "model.shortcut=B"),
        (("model.squeeze_excitation=16",), "model.squeeze_excitation=16", "model.squeeze_excitation=0"),
        (("model.preactivation=true",), "model.preactivation=true", "model.preactivation=false"),
        (("model.width=3",), "model.width=3", "model.width=1"),
    ],
    ids=str,
)
def test_another_form_than_torchvisions_is_refused_before_the_download(
    keys: tuple[str, ...], given: str, needed: str, hub: Path
):
    own = ("model.name=resnet50", "data.image_size=65", "model.shortcut=B")
    names = {key.partition("=")[0] for key in keys}
    kept = [key for key in own if key.partition("=")[0] not in names]
    config = tiny_config(*kept, *keys, V1)
    message = message_of(lambda: can_be_read_offline(config.model, config.image_size))
    assert all(part in message for part in ("none for resnet50 with", given, needed)), message


@pytest.mark.parametrize(
    ("keys", "twin"),
    [
        ({"name": "resnet152"}, models.ResNet152_Weights),
        ({"name": "resnet50", "groups": 32, "width": 2}, models.ResNeXt50_32X4D_Weights),
        ({"name": "resnet101", "groups": 64, "width": 4}, models.ResNeXt101_64X4D_Weights),
        ({"name": "resnet101", "width": 2}, models.Wide_ResNet101_2_Weights),
    ],
    ids=str,
)
def test_our_networks_have_the_weights_of_their_twins(keys: dict[str, Any], twin: Any, hub: Path):
    with torch.device("meta"):
        from pipeline.models import build_model
        from pipeline.models.pretrained import from_torchvision

        config = ModelConfig(weights="DEFAULT", **keys)
        ours = build_model(config, 1000, image_size=224)
        theirs = models.get_model(twin.__name__.removesuffix("_Weights").lower(), weights=None)
    expected = {from_torchvision(key): value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    with (
        patch("torch.hub.load_state_dict_from_url", side_effect=OSError),
        patch("torchvision.models._api.load_state_dict_from_url", side_effect=OSError("no network")),
    ):
        assert twin.DEFAULT.url in message_of(lambda: read_library_weights(config, 224))


def test_the_tries_of_a_download_are_not_told(hub: Path, caplog: pytest.LogCaptureFixture):
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    assert "no network here" in message_of(lambda: initial(*PRETRAINED))
    assert "Retrying" not in caplog.text and logger.level == level


@pytest.mark.parametrize("is_main", [True, False])
def test_a_download_from_the_hub_is_told_on_rank_0(
    is_main: bool, hub: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(UserError, match="cannot be downloaded"):
        read_library_weights(tiny_config(*PRETRAINED).model, 65, progress=is_main)
    told = [text for text in caplog.messages if "https://huggingface.co/timm/resnet26t.ra2_in1k" in text]
    assert len(told) == int(is_main)
    assert all(text.endswith("without an answer this ends after 3 tries") for text in told)


def test_weights_in_the_cache_of_the_hub_are_no_download(
    hub: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    repository = tmp_path / "hub/models--timm--resnet26t.ra2_in1k"
    for file, content in (("refs/main", "abc"), ("snapshots/abc/model.safetensors", "")):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(content)
    with patch("huggingface_hub.get_hf_file_metadata", side_effect=AssertionError):
        reach_hub("timm/resnet26t.ra2_in1k", None)
    assert "downloading" not in caplog.text


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ConnectionError("no network here"), 3), (HfHubHTTPError("404", response=Mock()), 1), (None, 1)],
    ids=str,
)
@pytest.mark.parametrize("own_timeout", [10, 120])
def test_the_hub_is_asked_a_few_times(
    error: Exception | None, tries: int, own_timeout: int, hub: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", own_timeout)
    refused = pytest.raises(ConnectionError) if tries > 1 else nullcontext()
    with patch("huggingface_hub.get_hf_file_metadata", side_effect=error) as asked, refused:
        reach_hub("timm/resnet26t.ra2_in1k", None)
    assert asked.call_count == tries
    assert all(call.kwargs["timeout"] >= own_timeout for call in asked.call_args_list)


def test_a_missing_timm_is_named(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    config = tiny_config("model.name=timm/resnet18", "model.weights=pretrained").model
    assert "timm/resnet18 needs the package timm" in message_of(lambda: can_be_read_offline(config, 65))


def test_timms_weights_are_read(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(5)
    theirs = timm.create_model("resnet18").eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    name = "resnet18.a1_in1k"
    local = replace(timms_registry._model_pretrained_cfgs[name], file=str(tmp_path / "timm.pth"))
    monkeypatch.setitem(timms_registry._model_pretrained_cfgs, name, local)
    keys = (f"model.name=timm/{name}", "model.weights=pretrained", "data.image_size=65")
    images = torch.randn(2, 3, 65, 65)
    torch.testing.assert_close(initial(*keys).eval()(images), theirs(images))
    model = initial(*keys, num_classes=5)
    assert model.get_parameter("fc.weight").shape == (5, 512)
    assert torch.equal(
        model.get_parameter("layer1.0.conv1.weight"), theirs.get_parameter("layer1.0.conv1.weight")
    )


def test_check_and_dry_run_download_nothing(
    published: nn.Module, hub: Path, capsys: pytest.CaptureFixture[str]
):
    with patch("torch.hub.download_url_to_file", side_effect=AssertionError):
        for keys in (
            (*OURS, V1),
            ("model.name=timm/resnet18", "data.image_size=65", "model.weights=pretrained"),
        ):
            for command in (["check"], ["train", "--dry-run"]):
                assert cli.main([command[0], "tests/tiny.yaml", *keys, *command[1:]]) == 0, (
                    capsys.readouterr().err
                )
        assert "weights        IMAGENET1K_V1, downloaded at the start" in capsys.readouterr().out
        assert cli.main(["check", "tests/tiny.yaml", *OURS, "model.weights=IMAGENET1K_V9"]) == 2
        assert "no weights IMAGENET1K_V9" in capsys.readouterr().err
        timms = ("model.name=timm/resnet18.tv_in2k", "model.weights=pretrained")
        assert cli.main(["check", "tests/tiny.yaml", *timms]) == 2
        assert "no pretrained weights for resnet18.tv_in2k" in capsys.readouterr().err
        assert not can_be_read_offline(tiny_config(*OURS, V1).model, 65)
    initial(*OURS, V1)
    assert can_be_read_offline(tiny_config(*OURS, V1).model, 65)
