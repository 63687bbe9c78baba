"""Tests networks of torchvision and timm: built without a download, trained by our step, refused."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import nn

from pipeline import __main__ as cli
from pipeline.config import ModelConfig, load_config
from pipeline.distributed.processes import average_batch_norm
from pipeline.errors import UserError
from pipeline.explain.analyse_test_set import examine
from pipeline.inference.trained_model import Trained
from pipeline.models import build_model, cam_target_layer, load_pretrained
from pipeline.training.build import build_raw_model
from tests.tiny import RECIPE, tiny_config, tiny_splits, tiny_trainer, train_steps

pytestmark = pytest.mark.filterwarnings("error")
SMALL = "torchvision/shufflenet_v2_x0_5"


def build(name: str, num_classes: int = 7, in_channels: int = 3, image_size: int = 64) -> nn.Module:
    with patch.object(torch.hub, "load_state_dict_from_url", side_effect=AssertionError("a download")):
        return build_model(ModelConfig(name=name), num_classes, in_channels, image_size)


def target(name: str, image_size: int) -> str | None:
    model = build(name, image_size=image_size)
    layer = cam_target_layer(model, image_size)
    return next(path for path, module in model.named_modules() if module is layer)


@pytest.mark.parametrize("name", [SMALL, "torchvision/googlenet", "timm/test_resnet", "timm/resnet10t"])
@pytest.mark.parametrize("in_channels", [3, 1])
def test_other_libraries_networks_are_built(name: str, in_channels: int):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    model = build(name, 7, in_channels)
    for training in (True, False):
        assert model.train(training)(torch.randn(2, in_channels, 64, 64)).shape == (2, 7)


def test_vision_transformers_take_the_size_of_the_images():
    pytest.importorskip("timm")
    for size in (32, 64):
        assert build("timm/test_vit", image_size=size).eval()(torch.randn(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet81", "torchvision has no network 'resnet81' .*did you mean torchvision/resnet18"),
        (
            "torchvision/fasterrcnn_resnet50_fpn",
            "has no network 'fasterrcnn_resnet50_fpn' that classifies images",
        ),
        (
            "torchvision/squeezenet1_1",
            r"does not take images of 8x8 pixels with 3 channels \(.*another data.image_size",
        ),
        ("timm/rsenet18", "timm has no network 'rsenet18' .*did you mean timm/resnet18"),
    ],
)
def test_networks_that_cannot_be_had(name: str, message: str):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=f"^model.name: .*{message}"):
        build(name, image_size=8)


@pytest.mark.parametrize(
    ("key", "size"),
    [
        ("data.eval_image_size=96", 96),
        ("augment.progressive=[[0st, 32], [1st, 64]]", 32),
        ("data.image_size=64", None),
    ],
)
def test_every_size_of_the_run_is_tried_before_training(key: str, size: int | None):
    keys = ["data.dataset=folder", "data.image_size=64", "model.name=torchvision/vit_b_32"]
    config = load_config(overrides=list(dict.fromkeys([*keys, key])))
    if size is None:
        assert isinstance(build_raw_model(config, 3, torch.device("meta")), nn.Module)
        return
    with pytest.raises(
        UserError, match=rf"^model.name: .*of {size}x{size} pixels .*, or another {key.partition('=')[0]}$"
    ):
        build_raw_model(config, 3, torch.device("meta"))


def test_timm_that_is_not_installed():
    with (
        patch.dict("sys.modules", {"timm": None}),
        pytest.raises(
            UserError,
            match=r"model.name: timm/resnet18 needs the package timm, .*; pip install -e '\.\[timm\]'",
        ),
    ):
        build("timm/resnet18")


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", [SMALL, "timm/test_resnet"])
def test_they_train_like_ours(name: str):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    trainer = tiny_trainer(
        tiny_config(f"model.name={name}", "model.shortcut=B", "data.image_size=32", "optimizer.lr=0.01")
    )
    before = [parameter.detach().clone() for parameter in trainer.state.model.parameters()]
    losses = train_steps(trainer, 2)
    assert torch.tensor(losses).isfinite().all()
    changed = [
        not torch.equal(old, new) for old, new in zip(before, trainer.state.model.parameters(), strict=True)
    ]
    assert all(changed)


def test_their_own_weights_load_and_the_head_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=12).state_dict(), tmp_path / "weights.pth")
    load_pretrained(build(SMALL, 12), tmp_path / "weights.pth")
    assert not caplog.messages
    load_pretrained(build(SMALL, 7), tmp_path / "weights.pth", is_main=False)
    assert not caplog.messages
    load_pretrained(build(SMALL, 7), tmp_path / "weights.pth")
    assert "no head for 7 classes; the head (fc) starts untrained" in caplog.text


def test_a_network_without_batch_norm_has_nothing_to_average():
    with (
        patch("torch.distributed.is_initialized", return_value=True),
        patch("torch.distributed.all_reduce") as all_reduce,
    ):
        average_batch_norm(nn.Linear(2, 2))
    all_reduce.assert_not_called()


@pytest.mark.parametrize(
    ("name", "image_size", "layer"),
    [
        ("torchvision/resnet18", 224, "layer4"),
        ("torchvision/resnet18", 32, "layer3"),  # the fourth has one pixel
        ("torchvision/squeezenet1_1", 64, "classifier.2"),
        ("torchvision/googlenet", 64, "inception5b"),
        (SMALL, 64, "conv5"),
        (SMALL, 32, "stage3"),  # not the branch of the next block that still has four pixels
        ("timm/resnetv2_18", 224, "norm"),
        ("resnet18", 32, "stages.3"),
        ("resnet18", 8, "stages.2"),  # the last stage has one position
        ("wrn16", 32, "norm"),
    ],
)
def test_the_layer_for_grad_cam(name: str, image_size: int, layer: str):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    assert target(name, image_size) == layer


def test_the_layer_for_grad_cam_behind_channels_in_the_last_place():
    size: dict[str, Any] = {
        "patch_size": [4, 4],
        "embed_dim": 12,
        "depths": [1, 1],
        "num_heads": [1, 1],
        "window_size": [4, 4],
    }
    model = torchvision.models.SwinTransformer(**size)
    assert cam_target_layer(model, 32) is model.permute


def test_transformers_have_no_layer_for_grad_cam():
    message = r"VisionTransformer has none .* works on tokens; name a layer, or set log.explain=false"
    vit = torchvision.models.VisionTransformer(
        32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16
    )
    with pytest.raises(UserError, match=message):
        cam_target_layer(vit, 32)
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message):
        target("timm/test_vit", 32)


def test_the_search_for_the_layer_leaves_the_network_alone():
    model = build(SMALL).train()
    cam_target_layer(model, 64)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_summary_of_another_library_s_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    overrides = [f"model.name={SMALL}", "model.shortcut=B", "data.image_size=224", "data.num_classes=1000"]
    assert cli.main(["summary", str(RECIPE), f"log.dir={tmp_path}", *overrides]) == 0
    output = capsys.readouterr().out
    assert "1,366,792" in output  # torchvision's table of models: 1.37 M parameters, 0.04 G multiply-adds
    assert "0.040 G multiply-adds" in output
    assert (tmp_path / "architecture-tiny.png").stat().st_size > 10_000


def test_what_a_network_without_maps_predicts_is_still_told(caplog: pytest.LogCaptureFixture):
    config = tiny_config("data.image_size=32")
    vit = torchvision.models.VisionTransformer(
        32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=4
    )
    analysis = examine(Trained.of(config, vit, tiny_splits(config)), count=3)
    assert len(analysis.predicted) == 8 and len(analysis.images) == 3 and len(analysis.maps) == 0
    assert "no maps: Grad-CAM needs a layer" in caplog.text
