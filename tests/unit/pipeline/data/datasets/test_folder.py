"""Tests reading and decoding class folders."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import FolderData
from pipeline.data.datasets.folder import load_test_files
from pipeline.data.files import many
from pipeline.data.files.class_folders import count_class_folders
from pipeline.errors import UserError
from pipeline.process.worker import Worker
from tests.class_folders import SIZE, load, pixels, save


def test_reads_class_folders(root: Path) -> None:
    splits = load(root)
    assert splits.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.sample_paths == tuple(
        f"train/{name}/{number}.png" for name in "ab" for number in range(3)
    )
    assert (splits.train.images == np.stack([pixels(seed) for seed in (0, 1, 2, 10, 11, 12)])).all()
    assert (splits.test.images == np.stack([pixels(seed) for seed in (100, 101, 110, 111)])).all()
    np.testing.assert_allclose(splits.mean, splits.train.images.mean((0, 1, 2)) / 255)
    assert splits.train.images.flags.writeable


def test_processes_read_what_threads_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged = root / "train/a/3.png"
    damaged.write_bytes((root / "train/a/0.png").read_bytes()[:60])
    options: dict[str, Any] = {"on_bad_image": "skip", "cache_dir": str(root / "cache")}
    threads = load(root, **options)
    shutil.rmtree(root / "cache")
    calls: list[int] = []
    call = Worker.call
    monkeypatch.setattr(Worker, "call", lambda *rest: calls.append(len(rest[2])) or call(*rest))
    for name, value in (("_TIMED", 1), ("_QUICK_S", 60.0), ("_LEAST_SHARE", 1), ("_FEW_CORES", 0)):
        monkeypatch.setattr(many, name, value)
    processes = load(root, **options)
    assert sum(calls) >= 2 * (6 + 3)
    for part in ("train", "test"):
        ours, theirs = getattr(processes, part), getattr(threads, part)
        assert ours.sample_paths == theirs.sample_paths
        assert (ours.images == theirs.images).all() and (ours.labels == theirs.labels).all()
    assert (processes.mean, processes.std) == (threads.mean, threads.std)
    assert not capfd.readouterr().err


def test_some_of_the_classes(root: Path) -> None:
    """The others are left out in both parts; a class that is missing is named with those that there are."""
    save(root / "train/c/0.png", pixels(20))
    for part in ("train", "test"):
        save(root / part / "d/0.png", pixels(30))
    splits = load(root, classes=("d", "b"))
    assert splits.class_names == ("b", "d")
    assert splits.train.labels.tolist() == [0, 0, 0, 1] and splits.test.labels.tolist() == [0, 0, 1]
    assert splits.train.sample_paths is not None and splits.train.sample_paths[3] == "train/d/0.png"
    config = FolderData(root=str(root), classes=("b", "d"), image_size=SIZE)
    shown = load_test_files(config, splits.class_names, streamed=False)
    assert shown.labels.tolist() == [0, 0, 1]
    assert count_class_folders(root, config) == 2
    with pytest.raises(UserError, match=r"data\.classes: .*train has no .*folder e, f; it has .*a, b, c, d"):
        load(root, classes=("e", "a", "f"))
    for one in (("a",), ("a", "a")):
        with pytest.raises(UserError, match=r"data\.classes: names one class, a; training"):
            load(root, classes=one)
        with pytest.raises(UserError, match=r"data\.classes: names one class"):
            count_class_folders(root, FolderData(root=str(root), classes=one))


def test_holdout_keeps_the_paths(root: Path) -> None:
    splits = load(root, holdout=2)
    assert splits.holdout is not None
    for part in (splits.train, splits.holdout):
        assert part.sample_paths is not None
        for sample, path in enumerate(part.sample_paths):
            assert (part.images[sample] == np.asarray(Image.open(root / path))).all()
    np.testing.assert_allclose(splits.std, splits.train.images.std((0, 1, 2)) / 255)


def test_nested_folders_stray_files_and_odd_names(root: Path) -> None:
    save(root / "train/b/deeper/still/9.PNG", pixels(5))
    save(root / "train/été/ß 日本.JPEG", Image.new("RGB", (SIZE, SIZE), "red"))
    raw_name = os.fsdecode(b"\xff.png")
    save(root / "train/été" / raw_name, pixels(6))
    for stray in (
        "train/a/.DS_Store",
        "train/a/Thumbs.db",
        "train/a/notes.txt",
        "train/a/._0.png",
        "train/list.csv",
        "train/.hidden/0.png",
    ):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_bytes(b"stray")
    splits = load(root)
    assert splits.class_names == ("a", "b", "été")
    assert splits.train.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert splits.train.sample_paths is not None
    assert splits.train.sample_paths[6:] == (
        "train/b/deeper/still/9.PNG",
        "train/été/ß 日本.JPEG",
        f"train/été/{raw_name}",
    )
    assert (splits.train.images[6] == pixels(5)).all()


def test_links_are_followed_but_not_in_circles(root: Path) -> None:
    (root / "train/a").rename(root / "elsewhere")
    (root / "train/a").symlink_to(root / "elsewhere")
    assert len(load(root).train) == 6
    (root / "elsewhere/loop").symlink_to(root / "elsewhere")
    with pytest.raises(UserError, match=r"data\.root: the link .*/train/a/loop leads back"):
        load(root)


def test_links_to_themselves_are_named_as_other_bad_files(root: Path) -> None:
    for link in ("train/loop", "train/a/loop", "train/a/loop.png"):
        (root / link).symlink_to(Path(link).name)
    with pytest.raises(
        UserError,
        match=r"1 of 11 images cannot be read.*\n.*/train/a/loop\.png: Too many levels of symbolic links$",
    ):
        load(root)
    assert len(load(root, on_bad_image="skip").train) == 6


def test_images_without_classes_are_no_test_set(root: Path) -> None:
    """ImageNet has such a `test/`."""
    (root / "test").rename(root / "val")
    save(root / "test/ILSVRC2012_test_00000001.png", pixels(5))
    assert len(load(root).test) == 4


def test_val_stands_in_for_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    splits = load(root)
    assert splits.test.sample_paths is not None
    assert splits.test.sample_paths[0] == "val/a/0.png"
    save(root / "test/a/0.png", pixels(1))
    assert len(load(root).test) == 1
