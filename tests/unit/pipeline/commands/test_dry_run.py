"""Checks that `--dry-run` prints the plan of the run, and uses no GPU, downloads and writes nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import __main__ as cli
from pipeline import train
from pipeline.commands import dry_run
from pipeline.config import SLOW_ON_CPU
from pipeline.training.trainer import Plan
from tests.python import ROOT
from tests.sandbox import files_in, sandbox
from tests.tiny import RECIPE, tiny_config

pytestmark = pytest.mark.usefixtures("process_state")
CIFAR = str(ROOT / "configs/cifar10_resnet18.yaml")


@pytest.fixture(autouse=True)
def nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a dry run took a GPU or the network")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


def plan_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """Return the lines of a plan by their names."""
    assert train.main([*arguments, "--dry-run"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "dry run: nothing was trained, downloaded or written"
    parts = [re.split(r"  +", line, maxsplit=1) for line in lines]
    return {name: text for name, text in parts if name}


def test_the_plan_is_that_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plan = plan_of(capsys, str(RECIPE), f"log.dir={tmp_path}/runs", "data.holdout=8")
    real = Plan.of(tiny_config(), 4)
    assert (
        plan["data"] == "synthetic: 32 training images, 8 held out, 8 test images, 4 classes (needs no files)"
    )
    assert plan["steps"] == "12 of 8 images, 4 an epoch: 3 epochs"
    percents = (0, 25, 50, 75, 100)
    rates = [f"{percent} % {real.lr_at(percent * real.total_steps // 100):.4g}" for percent in percents]
    assert plan["learning rate"] == ", ".join(rates) and rates[-1] == "100 % 0"
    assert plan["processes"].startswith("1, on the CPU (")
    assert plan["loader"] == "dali (CPU backend), 1 thread, 3 batches ahead"
    assert (plan["precision"], plan["compile"]) == ("fp32", "none")
    assert plan["evaluation"] == "every 4 steps; logged every 2 steps"
    assert plan["checkpoints"].startswith("every 4 steps")
    assert plan["run folder"] == f"{tmp_path}/runs/tiny-TIME"
    assert list(tmp_path.iterdir()) == []


def test_half_precision_without_a_gpu_is_warned_of(capsys: pytest.CaptureFixture[str]):
    assert train.main([str(RECIPE), "precision.mode=fp16", "--dry-run"]) == 0
    assert f"  warning: {SLOW_ON_CPU}\n" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_a_step_cannot_be_captured_without_a_gpu(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(dry_run, "output_of", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    keys = ["runtime.device=auto", "compile.mode=reduce-overhead", f"log.dir={tmp_path}"]
    assert train.main([str(RECIPE), *keys, *words]) == 2
    assert "compile.mode: reduce-overhead captures CUDA graphs, but the run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_milestones_after_the_end_of_a_shorter_run(capsys: pytest.CaptureFixture[str]):
    recipe = str(ROOT / "configs/cifar10_resnet20.yaml")
    epochs = "schedule.milestones=[80ep, 120ep]"
    assert train.main([recipe, "duration=100ep", epochs, "precision.mode=bf16", "--dry-run"]) == 0
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert re.match(" {15}warning: schedule.milestones: 120ep .* 100ep", warning)


def test_frozen_parameters_are_counted_and_need_no_gradients(capsys: pytest.CaptureFixture[str]):
    keys = ("model.freeze=[stem.*, stages.*]", "model.name=resnet20", "precision.mode=fp32")
    recipe = str(RECIPE)
    plan, whole = plan_of(capsys, recipe, *keys), plan_of(capsys, recipe, *keys[1:])
    assert re.match(r"(\d+) of 269,\d+ parameters; model.freeze excludes", plan["trained"])
    assert "trained" not in whole
    mib = [int(re.findall(r"(\d+) weights and optimizer", one["memory"])[0]) for one in (plan, whole)]
    assert mib[0] < 0.6 * mib[1]


def test_on_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(dry_run, "output_of", lambda *_: "NVIDIA H200, 143771\nNVIDIA H200, 143771")
    monkeypatch.setenv("QUICKRES_NUM_PROCESSES", "2")
    plan = plan_of(capsys, CIFAR, f"data.root={tmp_path}", "ema.decay=0.99")
    assert plan["data"].endswith(f"(not in {tmp_path} yet: a run downloads it first)")
    assert plan["processes"] == "2, on NVIDIA H200, 2 visible"
    assert plan["compile"] == "graph, the step captured in a CUDA graph"
    total, weights, activations, images = map(int, re.findall(r"(\d+) ", plan["memory"].replace(",", ""))[:4])
    # weights, gradients, momentum, average, half precision; a checkpoint
    assert weights == round(11_173_962 * 4 * 7.5 / 2**20)
    assert images == round(60_000 * 3072 / 2**20)
    assert activations == pytest.approx(1157 / 2, rel=0.01)
    assert total == pytest.approx(weights + activations + images, abs=20)
    assert plan["memory"].endswith("; the machine has 143,771")
    command = [CIFAR, "--dry-run", f"data.root={tmp_path}"]
    large = ("data.batch_size=262144", "data.dataset=synthetic", "data.num_samples=300000")
    assert train.main([*command, *large]) == 0
    assert train.main([*command, "data.batch_size=513"]) == 2
    monkeypatch.setenv("QUICKRES_NUM_PROCESSES", "3")
    assert train.main([*command, "data.batch_size=510", "data.eval_batch_size=999"]) == 2
    assert "more processes than the 2 visible GPUs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "visible"),
    [(None, 2), ("1", 1), ("0,1", 2), ("0,7,1", 1), ("-1", 0), ("", 0), ("GPU-1a", 1), ("none", 0)],
    ids=["all", "one", "both", "until the first invalid", "none", "empty", "by UUID", "by a word"],
)
def test_the_gpus_that_a_program_sees(chosen: str | None, visible: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "output_of", lambda *_: "A, 1\nB, 2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    gpus = dry_run._visible_gpus()
    assert len(gpus) == visible
    assert chosen != "1" or gpus == ["B, 2"]


def test_a_gpu_that_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As on a machine that only submits jobs."""
    monkeypatch.setattr(dry_run, "output_of", lambda *_: None)
    plan = plan_of(capsys, CIFAR, f"data.root={tmp_path}", "runtime.device=gpu", "data.loader=fused")
    assert plan["processes"] == "1, on a GPU, of which this machine has none"
    assert train.main([CIFAR, "--dry-run", f"data.root={tmp_path}", "data.loader=fused"]) == 2
    assert "data.loader: fused runs on a GPU only" in capsys.readouterr().err


def test_a_batch_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(dry_run, "output_of", lambda *_: "Some GPU, 8192")
    keys = (f"data.root={tmp_path}", "data.batch_size=8192", "optimizer.lr=0.4")
    assert train.main([CIFAR, "--dry-run", *keys]) == 0
    (warning,) = (line.strip() for line in capsys.readouterr().out.splitlines() if "warning" in line)
    assert re.match("warning: .* 3200 images .* 8,192 MiB", warning)
    assert "optimizer.accumulate=4" in warning
    assert "data.batch_size=3200 with optimizer.lr=0.156" in warning


def test_a_folder_is_listed_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split, count in (("train", 5), ("val", 2)):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                (tmp_path / split / name / f"{number}.jpg").write_bytes(b"not opened")
    keys = ["data.dataset=folder", f"data.root={tmp_path}", f"log.dir={tmp_path}/runs"]
    before = files_in(tmp_path)
    plan = plan_of(capsys, str(RECIPE), *keys)
    assert re.search(rf"^warning: {RECIPE}:.*data.num_classes.*data.dataset=folder", plan["config"])
    expected = "folder: 10 training images, 4 test images, 2 classes"
    assert plan["data"] == f"{expected} (as listed in {tmp_path}, no image opened)"
    assert files_in(tmp_path) == before
    assert train.main([str(RECIPE), "--dry-run", *keys, "data.batch_size=16"]) == 2
    assert re.search("data.batch_size: 16 .*10 training images", capsys.readouterr().err)
    assert train.main([str(RECIPE), "--dry-run", "data.dataset=folder", "data.root=/nowhere"]) == 2
    assert re.search("data.root: .*/nowhere", capsys.readouterr().err)


def test_an_image_size_after_the_end_of_a_shorter_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "val"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.jpg").write_bytes(b"not opened")
    keys = [
        "data.dataset=folder",
        f"data.root={tmp_path}",
        "data.image_size=64",
        "augment.progressive=[[0ep, 32], [12ep, 64]]",
    ]
    assert train.main([str(RECIPE), "--dry-run", *keys, "data.batch_size=2", "duration=8ep"]) == 2
    assert re.search(r"augment.progressive: 12ep \(step 12\) .*8ep", capsys.readouterr().err)


def test_weights_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.undo()
    assert train.main([str(RECIPE), "--dry-run", f"model.weights={tmp_path}/none.pth"]) == 2
    assert f"model.weights: {tmp_path}/none.pth" in capsys.readouterr().err


def test_a_run_to_be_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = (str(RECIPE), f"log.dir={tmp_path}", "duration=4st", "log.tensorboard=false")
    assert train.main(command) == 0
    (run,) = (path for path in tmp_path.iterdir() if path.name != "latest")
    (run / "result.json").unlink()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    plan = plan_of(capsys, *command, "resume=auto")
    assert plan["run folder"] == f"{run}, continued from step-00000004"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_command(tmp_path: Path):
    environment = {**sandbox(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "error", "-m", "pipeline", "train", CIFAR, "seed=1", "--dry-run"]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("data           cifar10: 50,000 training images")
    assert files_in(tmp_path) == set()  # importing torch makes the cache folder, empty
    assert not list((tmp_path / "work").iterdir())


def test_it_is_an_option_of_both_commands(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", str(RECIPE), "--dry-run"]) == 0
    assert "dry run: nothing was trained" in capsys.readouterr().out


def test_a_wrong_number_of_class_weights(capsys: pytest.CaptureFixture[str]):
    assert train.main([str(RECIPE), "loss.class_weights=[1, 2]", "--dry-run"]) == 2
    assert "loss.class_weights: 2 weights for 4 classes; give one for each class" in capsys.readouterr().err
    for weights in ("[1, 2, 3, 4]", "balanced"):
        assert train.main([str(RECIPE), f"loss.class_weights={weights}", "--dry-run"]) == 0
