"""Tests every benchmark for five steps, and its parts."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.measure import session, timing, workloads
from benchmarks.measure.options import QUICK
from benchmarks.measure.timing import Workload
from benchmarks.publish.about_folder import ABOUT, AboutFolder, name_of_images
from benchmarks.publish.records import append, read
from benchmarks.suites import loaders
from pipeline.config import load_config
from pipeline.data.datasets.counts import count_images

QUICKSTART = "configs/quickstart.yaml"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "scaling" else ())
        for name in BENCHMARKS
        if name != "peers"  # which needs programs of others: test_peers.py has some
    ],
)
def test_five_steps(name: str, capsys: pytest.CaptureFixture[str]):
    further = ["--averaging", "ddp"] if name == "scaling" else []
    assert main([name, "--quick", "runtime.device=cpu", *further]) == 0
    out = capsys.readouterr().out
    assert "┃" in out
    assert "data.dataset" not in out, "it fell back on synthetic images"
    if name == "bench":
        assert "Bottleneck: " in out
    if name == "kernels-by-share":
        assert "convolution: forward" in out and "optimizer" in out
    if name == "scaling":
        assert all(
            f"{what} on 2 processes: " in out
            for what in (
                *("weak scaling", "weak scaling, DDP"),
                *("strong scaling", "apart, without communication,"),
            )
        )


@pytest.mark.slow
def test_bench_on_two_processes_times_the_step_without_communication():
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command = [*launch, "--config_file", "configs/accelerate/cpu2.yaml", "-m", "benchmarks", "bench"]
    done = subprocess.run([*command, "--quick", "runtime.device=cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 x CPU" in done.stdout and "step, no communication" in done.stdout


def test_what_is_measured_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "append", partial(append, results=tmp_path))
    keys = ["precision.mode=fp32", "data.loader=reference", "runtime.device=cpu"]
    assert main(["bench", QUICKSTART, *QUICK, *keys, "--record", "--windows", "2", "--steps", "1"]) == 0
    records = {record.benchmark: record for record in read(tmp_path)}
    assert set(records) == {"loader", "step", "end_to_end"}
    step, both, loader = records["step"], records["end_to_end"], records["loader"]
    assert loader.variant == loader.loader == "torchvision", "as `loaders` calls it"
    assert step.images_per_sec is not None and step.images_per_sec.n == 2
    assert step.tflops == pytest.approx(
        step.images_per_sec.median * 6 * 10.2e6 / 1e12, rel=0.1
    )  # 10 M multiply-adds an image, forward
    assert both.baseline is not None and both.baseline.variant == "step alone"
    assert load_config(overrides=[]).model_validate(both.config).data.batch_size == both.batch_size == 8
    assert both.gpu is None and both.command.startswith("python -m benchmarks")


def test_what_was_measured_before_ctrl_c_is_recorded_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append, results=tmp_path))
    time_window, windows = timing.time_window, list[str]()

    def stopped(workload: Workload, *given: Any) -> float:
        windows.append(workload.name)
        if len(windows) == 6:  # two to choose the steps, the warm-up, two rounds, and this
            raise KeyboardInterrupt
        return time_window(workload, *given)

    monkeypatch.setattr(timing, "time_window", stopped)
    keys = [*QUICK, "precision.mode=fp32", "runtime.device=cpu"]
    asked = ["--loaders", "dali", "--batch-sizes", "8", "--windows", "5", "--steps", "1", "--record"]
    assert main(["loaders", QUICKSTART, *keys, *asked]) == 130
    assert "stopped after 2 of 5 rounds" in capsys.readouterr().out
    (kept,) = read(tmp_path)
    assert kept.images_per_sec is not None and (kept.images_per_sec.n, kept.planned) == (2, 5)


SCALING = ["scaling", "--quick", "runtime.device=cpu"]
ABLATION = ["ablation", "--quick", "runtime.device=cpu", "--epochs"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--quick", "--record"], ["--record: ", "leave out --quick"]),
        (["--windows", "0"], ["--windows: ", "1 or more, got 0"]),
        (["loader", "--quick"], ["loader: ", "did you mean loaders?"]),
        (["configs/missing.yaml"], ["configs/missing.yaml: "]),
        (["optimizer.lrr=1"], ["optimizer.lrr", "did you mean optimizer.lr?"]),
        (
            ["loaders", "--quick", "--batch-sizes", "1000"],
            ["--batch-sizes: ", "64 training images", "choose"],
        ),
        ([*SCALING, "--processes", "1"], ["--processes: ", "above 1", "got 1"]),
        ([*SCALING, "--processes", "3"], ["data.batch_size: 8 images", "3 processes"]),
        (
            [*SCALING, "--processes", "8", "data.batch_size=16"],
            ["data.batch_size: 16 on each of 8", "use 8 or"],
        ),
        ([*SCALING, "--loaders", "dail"], ["data.loader: ", "'dali'"]),
        ([*SCALING, "--rounds", "0"], ["--rounds: ", "1 or more, got 0"]),
        ([*ABLATION, "1", "--jobs", "0"], ["--jobs: ", "1 or more, got 0"]),
        ([*ABLATION, "-1"], ["--epochs: ", "0 or more, got -1"]),
        ([*ABLATION, "1", "seed=3"], ["seed: ", "use seeds"]),
        (["saving", "--quick", "runtime.device=cpu", "--epochs", "0"], ["--epochs: ", "1 or more, got 0"]),
        (
            ["startup", "--quick", "runtime.device=cpu", "--starts", "0"],
            ["--starts: ", "1 or more"],
        ),
        (
            ["step", "--quick", "runtime.device=cpu", "--precisions", "fp32,fp8"],
            ["precision.mode: ", "'fp16'"],
        ),
        (["loaders", "--quick", "--batch-sizes", "8,0"], ["data.batch_size: ", "greater than or equal to 1"]),
    ],
)
def test_bad_input_is_an_error_before_anything_is_measured(
    arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert [part for part in parts if part not in printed.err] == []
    assert "batch 8" not in printed.out and "building" not in printed.out


def test_a_surplus_argument_is_an_error():
    with pytest.raises(SystemExit, match="2"):
        main(["readme", "--check", "surplus"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--record", "runtime.device=cpu"],
        ["saving", "--quick", "runtime.device=cpu", "--folder", "{file}/folder"],
    ],
)
def test_a_folder_that_cannot_be_written_is_one_message(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(session, "RESULTS", tmp_path / "file")
    assert main([argument.format(file=tmp_path / "file") for argument in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {tmp_path / 'file'}/")
    assert "Not a directory" in printed.err and printed.err.count("\n") == 1
    assert "building" not in printed.out


def test_memory_that_is_used_up_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def rig(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("benchmarks.suites.step.Rig", rig)
    assert main(["step", "--quick", "runtime.device=cpu"]) == 1
    assert "data.batch_size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["loaders", "--batch-sizes", "256,"], r"--batch-sizes: ''.* 1,2"),
        (["ablation", "--seeds", "0,0"], r"--seeds: 0,0 .*twice"),
        (["kernels", "--ops", "augment,nope"], r"--ops: 'nope' .*augment,"),
    ],
)
def test_bad_lists(arguments: list[str], pattern: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert re.search(pattern, capsys.readouterr().err)


def test_a_missing_data_set_is_replaced_and_said(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    missing = ["data.dataset=folder", f"data.root={tmp_path / 'missing'}", "runtime.device=cpu"]
    assert main(["loaders", "--quick", "--loaders", "dali", "--batch-sizes", "8,100", *missing]) == 0
    out = capsys.readouterr().out
    assert "batch 100: left out" in out and "64 training images" in out
    assert "warning: " in out and "random images of 16x16 pixels" in out


@pytest.mark.parametrize("missing", [False, True])
def test_images_that_grow_in_training_are_timed_at_their_last_size(
    missing: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    folder = tmp_path / "images"
    if not missing:
        assert main(["make-folder", str(folder), "--images", "20", "--size", "40x30", "--threads", "1"]) == 0
    streamed = [
        "data.dataset=folder",
        f"data.root={folder}",
        "data.cache_below=8",
        "augment.cutout=0",
        "augment.crop_padding=0",
    ]
    assert (
        main(
            [
                "loaders",
                "--loaders",
                "dali",
                "--quick",
                "runtime.device=cpu",
                *streamed,
                "augment.progressive=[[0%,8],[75%,16]]",
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "images of 16 pixels, not of 8, 16" in out and "augment.progressive=[]" in out
    assert ("from memory" in out) == missing


def test_loaders_of_a_made_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = [tmp_path / name for name in ("one", "two")]
    for folder in made:
        assert main(["make-folder", str(folder), "--images", "20", "--size", "90x70", "--threads", "2"]) == 0
    assert "20 training images of" in capsys.readouterr().out
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.jpg")) for folder in made]
    assert files[0] == files[1] and len(files[0]) == 20 + 10
    assert all((made[0] / path).read_bytes() == (made[1] / path).read_bytes() for path in files[0])
    streamed = [
        "data.dataset=folder",
        f"data.root={made[0]}",
        "augment.cutout=0",
        "runtime.device=cpu",
        "--quick",
    ]
    assert main(["loaders", *streamed, "--loaders", "dali,fused"]) == 0
    out = capsys.readouterr().out
    assert "fused: left out" in out and "resized crop" in out
    assert main(["end_to_end", *streamed, "--loaders", "dali,reference"]) == 0
    assert main(["make-folder", str(tmp_path / "three"), "--source", str(made[0])]) == 2
    assert f"--source: the images of {made[0]}" in capsys.readouterr().err


def test_dali_on_shards_beside_dali_on_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images, shards, results = tmp_path / "images", tmp_path / "shards", tmp_path / "results"
    assert main(["make-folder", str(images), "--images", "20", "--size", "90x70", "--threads", "1"]) == 0
    keys = ["data.dataset=folder", f"data.root={images}", "data.image_size=48", "data.num_threads=1"]
    keys += ["runtime.device=cpu", "precision.mode=fp32"]
    asked = ["--loaders", "dali,dali-shards", "--batch-sizes", "8", "--windows", "2", "--steps", "1"]
    monkeypatch.setattr(loaders, "_STREAMED_WINDOW_S", 0.01)
    monkeypatch.setattr(workloads, "_IMAGES_AHEAD", 8)
    monkeypatch.setattr(session, "append", partial(append, results=results))
    command = ["loaders", QUICKSTART, *keys, *asked, "--shards", str(shards), "--record"]
    for _ in range(2):  # the shards of the first time are used again
        assert main(command) == 0
    assert "packing" not in capsys.readouterr().out.rpartition("loaders: ")[2]
    assert sorted(path.name for path in shards.glob("*.tar")) == ["train-000000.tar", "val-000000.tar"]
    folder, packed = read(results)[-2:]
    assert (folder.variant, folder.dataset, packed.variant, packed.dataset) == (
        "dali",
        "folder",
        "dali-shards",
        "shards",
    )
    assert packed.loader == "dali" and packed.baseline is not None and packed.baseline.variant == "dali"
    assert main(["make-folder", str(images), "--images", "22", "--size", "90x70", "--threads", "1"]) == 0
    assert main(command) == 2
    assert "--shards: " in capsys.readouterr().err
    assert main(["loaders", QUICKSTART, "--quick", "--shards", str(shards)]) == 2
    assert "--shards: needs streamed class folders" in capsys.readouterr().err


def test_make_shards_packs_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["make-folder", str(tmp_path / "a"), "--images", "20", "--size", "90x70", "--threads", "1"]) == 0
    )
    AboutFolder(name="Mosaics").write(tmp_path / "a" / ABOUT)
    given = [str(tmp_path / "a"), str(tmp_path / "b"), "--images-per-shard", "8", "--threads", "1"]
    assert main(["make-shards", *given]) == 0
    assert "b: 5 shards" in capsys.readouterr().out  # 20 training images and 10 for validation
    config = load_config(overrides=["data.dataset=shards", f"data.root={tmp_path / 'b'}"])
    assert name_of_images(config) == "Mosaics"
    counts = count_images(config.data, 0)
    assert (counts.train, counts.test, counts.num_classes) == (20, 10, 10)
    (tmp_path / "file").touch()
    assert main(["make-shards", str(tmp_path / "a"), str(tmp_path / "file/b")]) == 2
    assert "cannot be made" in capsys.readouterr().err
