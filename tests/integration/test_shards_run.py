"""Tests whole runs on shards: equal to the folder, continued, on two processes, evaluated, checked."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from pipeline import __main__ as cli
from pipeline import train
from pipeline.data import Batch, build_loaders
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.export import export_run
from pipeline.inference.trained_model import load_trained
from pipeline.training.step import Step, StepOutput
from tests.integration import two_processes
from tests.integration.ranks import ranks
from tests.pictures import make_folder, picture, save
from tests.shards import images_of, members_of, pack, write_parquet, write_tar
from tests.tiny import RECIPE, assert_equal, last_weights, only_run, read_metrics

pytestmark = pytest.mark.usefixtures("process_state")
NUM_TRAIN, NUM_TEST = 32, 10
PARTS = {"train": "train", "val": "validation"}
KEYS = (
    *("data.cache_below=16", "data.image_size=24", "duration=2ep", "log.tensorboard=false"),
    *("loss.class_weights=[1.0, 2.0]", "data.batch_size=8"),
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write pictures in two classes, and pack them into shards of both kinds."""
    base = tmp_path_factory.mktemp("roots")
    for part, count in (("train", NUM_TRAIN), ("val", NUM_TEST)):
        for number in range(count):
            label = "ab"[number % 4 == 0]
            image = picture(80, 96, seed=number + 100 * (part == "val"))
            save(base / "folder" / part / label / f"{number:02d}.jpg", image, quality=92)
    kinds = ("tar", "parquet")
    return {"folder": base / "folder", **{k: pack(base / "folder", base / k, k, PARTS, 3) for k in kinds}}


def run(root: Path, folder: Path, *overrides: str) -> int:
    dataset = "folder" if root.name == "folder" else "shards"
    given = (f"data.dataset={dataset}", f"data.root={root}", f"log.dir={folder}", *KEYS, *overrides)
    return train.main([str(RECIPE), *given])


@pytest.fixture(scope="module")
def whole(
    roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None
) -> Path:
    """Make a whole run on tar files, with a balanced sampler."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(roots["tar"], folder, "data.sampler=balanced") == 0
    return only_run(folder)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_run_on_other_places_of_the_same_images_has_the_same_weights(
    roots: dict[str, Path], whole: Path, tmp_path: Path, kind: str
):
    assert run(roots[kind], tmp_path, "data.sampler=balanced") == 0
    assert_equal(last_weights(only_run(tmp_path)), last_weights(whole))
    assert read_metrics(only_run(tmp_path)) == read_metrics(whole)


@pytest.mark.parametrize("step", [2, 3, 6])
def test_stopped_anywhere_and_continued(
    roots: dict[str, Path], whole: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
):
    taken: list[list[int]] = []
    call = Step.__call__

    def watched(self: Step, batch: Batch) -> StepOutput:
        output = call(self, batch)
        taken.append(batch.indices.tolist())
        if len(taken) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    monkeypatch.setattr(Step, "__call__", watched)
    assert run(roots["tar"], tmp_path, "data.sampler=balanced") == 75 and len(taken) == step
    assert run(roots["tar"], tmp_path, "data.sampler=balanced", "resume=auto") == 0 and len(taken) == 8
    assert_equal(last_weights(only_run(tmp_path)), last_weights(whole))
    assert read_metrics(only_run(tmp_path)) == read_metrics(whole)


@pytest.mark.slow
def test_two_processes_see_the_samples_of_one(roots: dict[str, Path], whole: Path, tmp_path: Path):
    shutil.rmtree(roots["tar"] / ".quickres")  # rank 0 makes the index anew, and rank 1 waits
    arguments = [
        str(RECIPE),
        "data.dataset=shards",
        f"data.root={roots['tar']}",
        f"log.dir={tmp_path}/runs",
        *KEYS,
    ]
    arguments += ["data.sampler=balanced", "data.eval_batch_size=4"]
    with ranks(tmp_path, 2, two_processes.main, tmp_path, 0, arguments) as run:
        assert run.wait() == [0, 0], run.errors
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["steps"] for rank in (0, 1)]
    trained = load_trained(whole)
    alone = build_loaders(trained.config, trained.splits, trained.device).train
    expected = [batch.indices.tolist() for _ in range(2) for batch in alone]
    assert [zero["indices"] + one["indices"] for zero, one in zip(*reports, strict=True)] == expected
    record = read_metrics(only_run(tmp_path / "runs"))[-1]
    assert (record["kind"], record["seen"]) == ("eval", NUM_TEST)


def test_the_run_is_evaluated_on_shards_and_on_the_folder(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(roots["parquet"], tmp_path) == 0
    path = only_run(tmp_path)
    own = evaluate_run(path)
    assert (own.correct, own.seen) == (read_metrics(path)[-1]["correct"], NUM_TEST)
    card = export_run(path, "hub").file.with_name("README.md").read_text()
    assert "name: shards of images\n      type: imagefolder" in card
    for kind in ("folder", "tar"):
        dataset = "folder" if kind == "folder" else "shards"
        keys = [f"data.dataset={dataset}", f"data.root={roots[kind]}"]
        if kind == "tar":  # its classes are numbers
            (tmp_path / "names.txt").write_text("0 a\n1 b\n")
            keys.append(f"data.class_names={tmp_path}/names.txt")
        assert cli.main(["evaluate", str(path), *keys]) == 0
        assert f"{own.correct}/{own.seen}" in capsys.readouterr().out


def test_check_data_takes_shards(roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    for kind in ("tar", "parquet"):
        assert cli.main(["check-data", str(roots[kind]), "--out", str(out), "--threads", "2"]) == 0
        printed = capsys.readouterr().out
        assert f"train: {NUM_TRAIN} images, 8 to 24 in each of 2 classes" in printed
        assert f"0 of {NUM_TRAIN + NUM_TEST} files are bad" in printed
    for part in ("train", "val"):
        members = [("a.jpg", b"no image"), ("a.cls", b"0"), ("b.jpg", b""), ("b.cls", b"1")]
        write_tar(tmp_path / "bad" / f"{part}-0.tar", members)
    assert cli.main(["check-data", str(tmp_path / "bad"), "--out", str(out)]) == 1
    assert "4 of 4 files are bad" in capsys.readouterr().out
    lines = (out / "bad_images.txt").read_text().splitlines()
    assert lines[0].startswith(f"{tmp_path}/bad/train-0.tar:a.jpg\tnot a JPEG") and len(lines) == 4
    assert cli.main(["check-data", str(tmp_path / "bad"), "data.label_key=txt", "--out", str(out)]) == 2
    assert "data.label_key" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [(), ("data.on_bad_image=skip",)], ids=["error", "skip"])
def test_check_data_lists_images_without_a_label(
    keys: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root, out = tmp_path / "shards", tmp_path / "out"
    images = images_of(make_folder(tmp_path / "images", train=2, test=1), "train")
    members = [*members_of(images), ("odd\nname.jpg", images[0][0].read_bytes())]
    write_tar(root / "train-0.tar", members)
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": None}, "label": label}
        for file, label in (*images, (images[0][0], None))
    ]
    write_parquet(root / "val-0.parquet", rows)
    assert cli.main(["check-data", str(root), *keys, "--out", str(out)]) == 1
    assert "\n2 of 10 files are bad\n" in capsys.readouterr().out
    assert (out / "bad_images.txt").read_text() == (
        f"{root}/train-0.tar:odd\\nname.jpg\tit has no label\n{root}/val-0.parquet:4\tit has no label\n"
    )


def test_a_dry_run_writes_nothing(roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pack(roots["folder"], tmp_path / "shards", "parquet", PARTS, 1)
    assert run(root, tmp_path / "runs", "--dry-run") == 0
    assert (
        f"shards: {NUM_TRAIN} training images, {NUM_TEST} test images, 2 classes" in capsys.readouterr().out
    )
    assert sorted(path.name for path in root.iterdir()) == [
        "train-00000-of-00001.parquet",
        "validation-00000-of-00001.parquet",
    ]
