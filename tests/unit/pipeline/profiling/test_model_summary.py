"""Checks `python -m pipeline summary`: published figures, figures counted by hand, and the picture."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import __main__ as cli
from pipeline.config import ModelConfig, load_config
from pipeline.data.datasets.counts import num_classes_of
from pipeline.errors import UserError
from pipeline.models import build_model
from pipeline.models.flops import count_flops, on_meta
from pipeline.profiling.model_graph import draw_architecture
from pipeline.profiling.model_summary import build_for_summary, summarise
from tests.tiny import RECIPE, tiny_config

IMAGENET = ("data.dataset=synthetic", "data.image_size=224", "data.num_classes=1000")


class Pair(nn.Module):
    """A convolution, a norm, and the sum of its inputs: small enough to count by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).relu()
        return self.head((y + y).mean((2, 3)))


@pytest.mark.parametrize(
    ("overrides", "gmacs", "parameters"),
    [
        (("model.name=resnet18",), 0.555, 11_173_962),
        (("model.name=resnet50", *IMAGENET), 4.09, 25_557_032),
        # ResNeXt-50 32x4d
        (("model.name=resnet50", "model.groups=32", "model.width=2", *IMAGENET), 4.23, 25_028_904),
    ],
)
def test_published_figures(overrides: tuple[str, ...], gmacs: float, parameters: int):
    model, shape = build_for_summary(load_config(overrides=overrides))
    flops = count_flops(model, shape)
    assert flops[""] / 2e9 == pytest.approx(gmacs, rel=2e-3)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    # each layer is done once more for its weights' gradient and, all but the first, for its input's
    stem = flops["stem.0"]
    assert count_flops(model, shape, backward=True)[""] == pytest.approx(3 * flops[""] - stem)


def test_a_network_counted_by_hand():
    summary = summarise(on_meta(Pair()), (3, 6, 4), batch_size=10, precision="fp16")
    rows = {layer.name: layer for layer in summary.layers}
    assert list(rows) == ["", "conv", "norm", "head"]
    assert [layer.output for layer in summary.layers] == [(5,), (8, 6, 4), (8, 6, 4), (5,)]
    assert [layer.parameters for layer in summary.layers] == [216 + 16 + 45, 216, 16, 45]
    assert [layer.flops for layer in summary.layers] == [2 * (216 * 24 + 40), 2 * 216 * 24, 0, 2 * 40]
    assert [layer.output_bytes for layer in summary.layers] == [10 * 2 * n for n in (5, 192, 192, 5)]
    assert summary.training_flops == 2 * (2 * 216 * 24 + 3 * 40)
    # kept: the images, the convolution's output, the norm's after the ReLU, the head's input; for two images,
    # two float32 a channel
    assert summary.saved_bytes == 10 * (2 * (72 + 192 + 192 + 8) + 2 * 8 * 4 // 2)


def test_the_network_is_left_alone():
    model = build_model(ModelConfig(name="resnet20"), 10).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_flops(model, (3, 8, 8), backward=True)
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())


def test_classes_are_known_without_the_data(tmp_path: Path):
    assert num_classes_of(load_config(overrides=["data.dataset=cifar100"])) == 100
    assert num_classes_of(tiny_config()) == 4
    for name in ("cat", "dog", "owl", ".hidden"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert num_classes_of(load_config(overrides=["data.dataset=folder", f"data.root={tmp_path}"])) == 3
    with pytest.raises(UserError, match=r"data.root: no folder nowhere/train to count the classes in"):
        num_classes_of(load_config(overrides=["data.dataset=folder", "data.root=nowhere"]))
    lists = [f"data.{part}_list={tmp_path / part}.txt" for part in ("train", "test")]
    for labels, count in ((["cat", "dog"], 2), (["0", "3", "1", "2"], 4)):  # not the three folders
        for part in ("train", "test"):
            (tmp_path / f"{part}.txt").write_text("".join(f"{label}.jpg {label}\n" for label in labels))
        assert (
            num_classes_of(load_config(overrides=["data.dataset=folder", f"data.root={tmp_path}", *lists]))
            == count
        )


def test_frozen_parameters_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["summary", str(RECIPE), f"log.dir={tmp_path}"]
    assert cli.main([*command, "model.freeze=[stem.*, stages.*]"]) == 0
    assert "parameters; model.freeze excludes the others" in capsys.readouterr().out
    assert cli.main([*command, "model.freeze=[none.*]"]) == 2
    assert "model.freeze: 'none.*' fits no parameter" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")  # no `dot`
    assert cli.main(["summary", str(RECIPE), f"log.dir={tmp_path}", "model.shortcut=B"]) == 0
    printed = capsys.readouterr().out
    picture = tmp_path / "architecture-tiny.png"
    assert printed.splitlines()[-1] == str(picture)
    for part in (
        "stages.1.0.shortcut.0",
        "32×4×4",
        "272,084",
        "a batch of 8 in fp32",
        "G multiply-adds, each counted as two",
        "an estimate",
    ):
        assert part in printed
    with Image.open(picture) as image:
        assert image.height > 1000 and image.width > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50  # letters, with smoothed edges


def test_depth_and_format_of_the_picture(tmp_path: Path):
    model, shape = build_for_summary(tiny_config("model.name=resnet32"))
    assert draw_architecture(model, shape, tmp_path / "sub" / "picture.svg", "a <b> & c", None) == 3
    text = (tmp_path / "sub" / "picture.svg").read_text()
    assert "a &lt;b&gt; &amp; c" in text and ">input&#45;tensor<" in text
    assert text.count(">BasicBlock<") == 15 and "Conv2d" not in text
    assert draw_architecture(model, shape, tmp_path / "picture.svg", "", depth=1) == 1
    assert "BasicBlock" not in (tmp_path / "picture.svg").read_text()


def test_a_picture_that_cannot_be_written(tmp_path: Path):
    model, shape = build_for_summary(tiny_config())
    with pytest.raises(UserError, match=r"--picture: .*picture.bmp .* .png, .svg, .pdf"):
        draw_architecture(model, shape, tmp_path / "picture.bmp", "")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--picture: .* cannot be written"):
        draw_architecture(model, shape, tmp_path / "file" / "picture.png", "", depth=1)
