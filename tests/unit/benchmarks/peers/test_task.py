"""Tests which configs others can train, and the commands that are made of them."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.options import merge
from benchmarks.peers.folder_program import Program
from benchmarks.peers.task import Task, check_config, share_folder
from benchmarks.peers.timm_train import TimmTrain
from benchmarks.peers.torchvision_reference import TorchvisionReference
from pipeline.config import load_config
from pipeline.data.datasets.counts import Counts
from pipeline.errors import UserError
from tests.class_folders import make_class_folders

RECIPE = "configs/imagenet_resnet50.yaml"
EQUAL = ("augment.progressive=[]", "data.image_size=224", "data.eval_image_size=224", "schedule.name=cosine")


def task(*overrides: str, device: str = "cuda", epochs: int = 16, classes: int = 10) -> Task:
    keys = merge(EQUAL, ["data.batch_size=256", f"duration={epochs}ep"], overrides)
    config = load_config(RECIPE, keys)
    counts = Counts(train=9469, held_out=0, test=3925, num_classes=classes, note="")
    return Task(config, Path("/photos"), counts, epochs, 16, device)


def command(program: type[Program], *overrides: str, **more: Any) -> str:
    return " ".join(program(Path("checkout")).command(task(*overrides, **more), 7, Path("/out")))


def test_torchvision_is_asked_for_the_training_of_the_config():
    words = command(TorchvisionReference)
    assert words.partition(" ")[2] == (
        "train.py --data-path /photos --model resnet50 --batch-size 256 --epochs 16 --workers 16 "
        "--output-dir /out --opt sgd --lr 0.21 --momentum 0.9 --wd 0.0001 --norm-weight-decay 0 "
        "--bias-weight-decay 0 --lr-scheduler cosineannealinglr --lr-warmup-epochs 2 "
        "--lr-warmup-method linear --lr-warmup-decay 0.0001 --label-smoothing 0.1 --train-crop-size 224 "
        "--val-crop-size 224 --val-resize-size 256 --use-v2 --backend tensor --amp --print-freq 1"
    )


def test_timm_is_asked_for_the_training_of_the_config():
    """Its epochs of warm-up come before the others: 2 + 14 = 16."""
    words = command(TimmTrain)
    assert words.partition(" ")[2] == (
        "train.py --data-dir /photos --model resnet50 --num-classes 10 --img-size 224 --batch-size 256 "
        "--epochs 14 --workers 16 --output /out --experiment run --opt momentum --lr 0.21 --momentum 0.9 "
        "--weight-decay 0.0001 --sched cosine --sched-on-updates --warmup-epochs 2 --warmup-prefix "
        "--warmup-lr 2.1e-05 --smoothing 0.1 --color-jitter 0 --interpolation bilinear "
        "--train-interpolation bilinear --crop-pct 0.875 --seed 7 --pin-mem --amp --amp-dtype float16 "
        "--channels-last --torchcompile --log-interval 1"
    )


@pytest.mark.parametrize(
    ("override", "of_torchvision", "of_timm"),
    [
        ("precision.mode=bf16", "--amp", "--amp-dtype bfloat16"),
        ("optimizer.nesterov=true", "--opt sgd_nesterov", "--opt sgd "),
        ("schedule.final_fraction=0.01", "--lr-min 0.0021", "--min-lr 0.0021"),
        ("schedule.warmup=10%", "--lr-warmup-epochs 2", "--warmup-epochs 2"),
        ("schedule.warmup=100%", "--lr-warmup-epochs 15", "--epochs 1 "),
        ("model.name=torchvision/resnet34", "--model resnet34", "--model resnet34"),
        ("data.eval_crop=1.0", "--val-resize-size 224", "--crop-pct 1 "),
        ("augment.crop_scale=[0.25, 1.0]", "", "--scale 0.25 1 "),
        ("augment.flip=false", "", "--hflip 0"),
        ("model.zero_init_residual=false", "", "--model-kwargs zero_init_last=False "),
    ],
)
def test_a_key_becomes_an_option(override: str, of_torchvision: str, of_timm: str):
    for program, option in ((TorchvisionReference, of_torchvision), (TimmTrain, of_timm)):
        assert option in command(program, override) + " "
        assert (
            option in ("", "--amp", "--model resnet34")
            or option not in command(program) + " "
            or "10%" in override
        )


@pytest.mark.parametrize(
    ("name", "given"),
    [("torchvision/resnet34", True), ("timm/resnet34", False), ("torchvision/vgg11", False)],
)
def test_timm_s_blocks_start_as_ours(name: str, given: bool):
    """The ResNets of torchvision do not start as identities; other networks do not know the option."""
    assert ("zero_init_last=False" in command(TimmTrain, f"model.name={name}")) is given


@pytest.mark.parametrize("program", [TorchvisionReference, TimmTrain])
def test_the_cpu_has_no_half_precision_flags_without_need(program: type[Program]):
    words = command(program, "precision.mode=fp32", device="cpu")
    assert "--device cpu" in words and "--amp" not in words and "--torchcompile" not in words


@pytest.mark.parametrize(
    ("override", "of_torchvision", "of_timm"),
    [
        ("seed=0", ["no seed", "NCHW", "no torch.compile", "evaluates in float32"], []),
        ("precision.mode=bf16", ["fp16, not bf16"], []),
        ("schedule.warmup=3%", ["warm-up of 0 epochs, not 0.47"], ["warm-up of 0 epochs, not 0.47"]),
        ("schedule.name=linear", ["cosine schedule, not linear"], ["cosine schedule, not linear"]),
        ("optimizer.decay_norm_and_bias=true", [], ["no weight decay on norms and biases"]),
        ("data.eval_image_size=256", [], ["evaluates at 224 pixels"]),
        ("augment.crop_scale=[0.25,1.0]", ["crops of 8 to 100 % of the area"], []),
        ("model.zero_init_residual=true", ["residual blocks do not start as identities"], []),
        ("model.name=timm/resnet34", ["residual blocks do not start as identities"], []),
        ("augment.flip=alternating", *[["flips at random, not alternating"]] * 2),
        ("augment.crop_ratio=[1.0,1.0]", *[["crops with a ratio of width to height from 3/4 to 4/3"]] * 2),
        ("data.mean=[0.5,0.5,0.5]", ["normalised by ImageNet's statistics, not by those of the data"], []),
    ],
)
def test_what_a_program_cannot_do_alike_is_told(override: str, of_torchvision: list[str], of_timm: list[str]):
    for program, phrases in ((TorchvisionReference, of_torchvision), (TimmTrain, of_timm)):
        differences = [*program(Path()).differences(task(override))]
        assert [phrase for phrase in phrases if phrase not in differences] == []
    assert [*TimmTrain(Path()).differences(task())] == []


def test_torchvision_is_refused_with_few_classes():
    with pytest.raises(UserError, match=r"data\.root: .* fewer than 5 classes"):
        command(TorchvisionReference, classes=4)


def test_torchvision_must_have_the_network():
    assert TorchvisionReference(Path()).parameters(task()) == 23_528_522
    with pytest.raises(UserError, match=r"model\.name=timm/resnet18d: torchvision has no resnet18d"):
        TorchvisionReference(Path()).parameters(task("model.name=timm/resnet18d"))


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("data.dataset=shards", "data.dataset=folder"),
        ("data.classes=[a,b]", "a folder with these classes alone"),
        ("optimizer.name=muon", "optimizer.name=sgd"),
        ("model.name=resnet20", "resnet18"),
        ("augment.cutout=16", "augment.cutout=0"),
        ("augment.mix=mixup", "augment.mix=none"),
        ("augment.trivial_augment=true", "augment.trivial_augment=false"),
        ("optimizer.clip_norm=1.0", "optimizer.clip_norm=null"),
        ("data.holdout=100", "data.holdout=0"),
        ("ema.decay=0.99", "ema.decay=null"),
        ("model.freeze=[stem.*]", "model.freeze=[]"),
    ],
)
def test_what_others_cannot_do_is_refused(override: str, remedy: str):
    check_config(task().config)
    with pytest.raises(UserError) as caught:
        check_config(task(override).config)
    assert str(caught.value).startswith(override.partition("=")[0]) and remedy in str(caught.value)


def test_others_find_the_images_under_the_names_that_they_expect(tmp_path: Path):
    root, links = make_class_folders(tmp_path / "root"), tmp_path / "links"
    links.mkdir()
    config = load_config(RECIPE, [*EQUAL, f"data.root={root}"])
    assert share_folder(config, links) == links
    assert (links / "val/a/0.png").samefile(root / "test/a/0.png") and (links / "train/b/0.png").is_file()
    (root / "test").rename(root / "val")
    assert share_folder(config, links / "unused") == root
