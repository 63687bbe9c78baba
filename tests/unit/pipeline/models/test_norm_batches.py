"""Tests that a training batch with one value a channel at a batch norm is refused, with the remedy."""

import re
from pathlib import Path

import pytest
import torch

from pipeline import __main__ as cli
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.models import build_model, norm_batches
from pipeline.models.norm_batches import check_norm_batches
from tests.tiny import RECIPE

ONE = ("data.dataset=synthetic", "data.batch_size=1")
RESNET = ("model.name=resnet18", "model.stem=imagenet")


def message_of(config: Config, num_processes: int = 1) -> str:
    """Return the message that refuses a config, "" if it is accepted."""
    try:
        check_norm_batches(config, num_processes)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "keys",
    [
        (*RESNET, "data.image_size=32"),
        (*RESNET, "data.image_size=33"),
        ("model.name=resnet18", "data.image_size=8"),
        ("model.name=resnet20", "data.image_size=8"),
        ("model.name=wrn16", "model.preactivation=true", "data.image_size=8"),
        ("model.name=davidnet", "data.image_size=8"),
        ("model.name=davidnet", "data.image_size=16"),
        ("model.name=torchvision/resnet18", "data.image_size=32"),
        ("model.name=torchvision/resnet18", "data.image_size=48"),
        ("model.name=torchvision/shufflenet_v2_x0_5", "data.image_size=64"),
        ("model.name=timm/resnest14d", "data.image_size=64"),  # a batch norm after a mean over all positions
        ("model.name=timm/vit_tiny_patch16_224", "data.image_size=32"),
    ],
    ids=lambda keys: " ".join(key.partition("=")[2] for key in keys),
)
def test_it_is_refused_if_torch_refuses_it(keys: tuple[str, ...]):
    """torch refuses one value for each channel, in training alone."""
    if any("timm/" in key for key in keys):
        pytest.importorskip("timm")
    config = load_config(overrides=[*ONE, *keys])
    model = build_model(config.model, 2, image_size=config.image_size).train()
    images, message = torch.zeros(2, 3, config.image_size, config.image_size), message_of(config)
    if not message:
        model(images[:1])
        return
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(images[:1])
    named = re.search(r"the batch norm (\S+) of", message)
    assert named and isinstance(model.get_submodule(named[1]), torch.nn.modules.batchnorm._BatchNorm)
    assert "use data.batch_size=2 or more" in message
    model(images)


@pytest.mark.parametrize(
    ("batch_size", "num_processes", "keys", "remedy"),
    [
        (2, 1, (), None),
        (2, 2, (), "use data.batch_size=4 or more, or model.sync_batchnorm=true"),
        (2, 2, ("model.sync_batchnorm=true",), None),
        (1, 1, ("model.sync_batchnorm=true",), "use data.batch_size=2 or more"),
        (8, 1, ("optimizer.accumulate=8",), "use data.batch_size=16 or more, or optimizer.accumulate=4"),
        (6, 1, ("optimizer.accumulate=6",), "use data.batch_size=12 or more, or optimizer.accumulate=3"),
        (4, 1, ("optimizer.accumulate=2",), None),
        (
            12,
            1,
            ("optimizer.accumulate=12", "augment.mix=ricap"),
            "use data.batch_size=24 or more, or optimizer.accumulate=6",
        ),
        (
            4,
            2,
            ("optimizer.accumulate=2", "model.name=torchvision/resnet18", "model.stem=auto"),
            "use data.batch_size=8 or more, or optimizer.accumulate=1",
        ),
    ],
)
def test_the_least_batch(batch_size: int, num_processes: int, keys: tuple[str, ...], remedy: str | None):
    sizes = ("data.dataset=synthetic", f"data.batch_size={batch_size}", "data.eval_batch_size=12")
    network = {key.partition("=")[0]: key for key in (*RESNET, *keys)}
    message = message_of(load_config(overrides=[*sizes, *network.values()]), num_processes)
    assert message.endswith(remedy) if remedy is not None else not message


@pytest.mark.parametrize(
    ("progressive", "refused"),
    [
        ("[]", False),
        ("[[0ep, 32], [1ep, 64]]", True),
        ("[[0ep, 48], [1ep, 64]]", False),
    ],
)
def test_every_size_of_training_images_counts(progressive: str, refused: bool):
    """The size of evaluation does not: there, running statistics are used."""
    folder = ("data.dataset=folder", "data.image_size=64", "data.eval_image_size=32", "data.batch_size=1")
    config = load_config(overrides=[*folder, *RESNET, f"augment.progressive={progressive}"])
    assert ("an image of 32 pixels" in message_of(config)) == refused


def test_a_network_that_the_meta_device_does_not_know(monkeypatch: pytest.MonkeyPatch):
    forward = torch.nn.BatchNorm2d.forward

    def on_cpu_alone(self: torch.nn.BatchNorm2d, images: torch.Tensor) -> torch.Tensor:
        if images.is_meta:
            raise NotImplementedError
        return forward(self, images)

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", on_cpu_alone)
    assert "stages.3" in message_of(load_config(overrides=[*ONE, *RESNET]))


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("command", [["check"], ["train", "--dry-run"], ["train"], ["lr-find"]], ids=str)
def test_every_command_finds_it(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys = ["data.batch_size=1", "model.name=resnet18", f"log.dir={tmp_path}/runs"]
    assert cli.main([command[0], str(RECIPE), *keys, *command[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"error: data\.batch_size: 1 .* use data\.batch_size=2 or more$", line)
    assert not list(tmp_path.iterdir())


def test_nothing_is_built_for_a_larger_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(norm_batches, "build_model", lambda *_, **__: pytest.fail("the network is built"))
    check_norm_batches(load_config(overrides=["data.batch_size=4"]), 2)
