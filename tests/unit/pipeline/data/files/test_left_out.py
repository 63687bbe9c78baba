"""Tests what a listing takes, leaves out and tells: types of files, folders, copies, names of classes."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import FolderData
from pipeline.data.files.class_folders import count_class_folders
from pipeline.data.files.list_files import list_files
from pipeline.errors import UserError
from tests.class_folders import load, pixels, save


def warnings_of(root: Path, caplog: pytest.LogCaptureFixture, **keys: Any) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        list_files(FolderData(root=str(root), **keys))
    return [record.getMessage() for record in caplog.records]


def test_nothing_left_out_is_no_warning(root: Path, caplog: pytest.LogCaptureFixture):
    for name in ("Thumbs.db", "desktop.ini", "._0.png", ".DS_Store"):
        (root / "train/a" / name).write_bytes(b"x")
    load(root)  # makes the folder .quickres
    assert warnings_of(root, caplog) == []


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".tif", ".TIFF", ".jfif", ".ppm"])
def test_every_type_that_decoders_read_is_taken(root: Path, suffix: str, caplog: pytest.LogCaptureFixture):
    kind = {"format": "JPEG"} if suffix == ".jfif" else {}
    save(root / f"train/a/x{suffix}", pixels(5), **kind)
    splits = load(root)
    assert f"train/a/x{suffix}" in splits.train.sample_paths and warnings_of(root, caplog) == []


def test_what_is_left_out_is_counted_by_type_in_one_line(root: Path, caplog: pytest.LogCaptureFixture):
    for number in range(3):
        save(root / f"train/a/{number}.gif", Image.fromarray(pixels(0)).quantize(4))
    for name in ("train/b/x.avif", "test/a/README", "train/a/.0001.jpg", "train/list.csv"):
        (root / name).write_bytes(b"x")
    for folder in ("train/a/@eaDir/0.png", "train/@eaDir", "test/b/.thumbs", "train/#recycle"):
        save(root / folder / "thumb.jpg", pixels(1))
    (message,) = warnings_of(root, caplog)
    assert message.startswith(f"data.root: left out in {root}: 3 .gif")
    for counted in (
        *("1 .avif", "1 without a suffix", "1 hidden .jpg", "1 .csv"),
        *("2 folders @eaDir", "1 folder .thumbs", "1 folder #recycle"),
    ):
        assert counted in message
    assert "\n" not in message
    splits = load(root)
    assert splits.class_names == ("a", "b") and len(splits.train) == 6


def test_a_class_folder_that_begins_with_a_dot_is_told(root: Path, caplog: pytest.LogCaptureFixture):
    save(root / "train/.NET/0.png", pixels(1))
    (message,) = warnings_of(root, caplog)
    assert f"begin with a dot are no classes: {root}/train/.NET; rename" in message


def test_only_the_main_process_tells(root: Path, caplog: pytest.LogCaptureFixture):
    (root / "train/a/x.gif").write_bytes(b"x")
    load(root)
    caplog.clear()
    load(root, is_main=False)
    assert caplog.text == ""


# --- one file in several places ---


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_one_file_under_two_labels_is_told(root: Path, link: Any, caplog: pytest.LogCaptureFixture):
    link(root / "train/a/1.png", root / "train/b/9.png")
    (message,) = warnings_of(root, caplog)
    assert message.startswith("data.root: 1 train file stands under several labels: train/a/1.png (class a)")
    assert "train/b/9.png (class b)" in message


def test_test_files_that_are_training_files_are_told(root: Path, caplog: pytest.LogCaptureFixture):
    shutil.rmtree(root / "test")
    (root / "test").symlink_to(root / "train")
    (message,) = warnings_of(root, caplog)
    assert message.startswith("data.root: 6 of 6 test files are training files too")
    assert "test accuracy" in message


def test_copies_in_lists_are_told(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    lists = {"train_list": str(train), "test_list": str(test)}
    train.write_text(f"train/a/0.png 0\ntrain/b/0.png 1\n{root}/train/a/0.png 1\ntrain/a/1.png 0\n")
    test.write_text("test/a/0.png 0\ntest/b/0.png 1\n")
    (message,) = warnings_of(root, caplog, **lists)
    assert message.startswith("data.train_list: 1 train file stands under several labels")
    train.write_text(
        "train/a/0.png 0\ntrain/b/0.png 1\ntrain/b/0.png 1\n"
    )  # repeated with one label: intended
    assert warnings_of(root, caplog, **lists) == []
    test.write_text(train.read_text())
    (message,) = warnings_of(root, caplog, **lists)
    assert message.startswith("data.test_list: 3 of 3 test files are training files too")


def test_two_names_for_one_class_are_refused(root: Path, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("a cat\nb dog\na cat\nz x\nz y\n")  # the same name twice, and classes of other data
    assert load(root, class_names=str(names)).class_names == ("cat", "dog")
    names.write_text("a cat\nb dog\na lion\n")
    with pytest.raises(UserError, match=r"data\.class_names: .*names\.txt:3: .*class a, lion.*; remove"):
        load(root, class_names=str(names))


# --- data.train_folder and data.test_folder ---


def test_keys_choose_the_folders(root: Path, tmp_path: Path):
    (root / "train").rename(root / "Train")
    (root / "test").rename(tmp_path / "elsewhere")
    splits = load(root, train_folder="Train", test_folder=str(tmp_path / "elsewhere"))
    assert splits.train.sample_paths[0] == "Train/a/0.png"
    assert (root / splits.test.sample_paths[0]).samefile(tmp_path / "elsewhere/a/0.png")
    assert (splits.test.images[0] == pixels(100)).all()
    assert count_class_folders(root, FolderData(train_folder="Train")) == 2


def test_a_key_chooses_val_beside_test(root: Path):
    shutil.copytree(root / "test", root / "val")
    assert load(root, test_folder="val").test.sample_paths[0] == "val/a/0.png"
    assert load(root).test.sample_paths[0] == "test/a/0.png"


@pytest.mark.parametrize(
    ("change", "proposed"),
    [
        (
            lambda root: (root / "train").rename(root / "Train"),
            "data.train_folder=Train (class folders are in",
        ),
        (lambda root: (root / "test").rename(root / "valid"), "data.test_folder=valid"),
        (lambda root: save(root / "test/unknown/0.png", pixels(0)), "data.test_folder=val "),
        (lambda root: [path.unlink() for path in root.glob("test/*/*")], "data.test_folder=val "),
    ],
)
def test_a_message_names_the_folders_that_could_be_meant(root: Path, change: Any, proposed: str):
    change(root)
    if "valid" not in proposed:
        save(root / "val/a/0.png", pixels(0))
    with pytest.raises(UserError, match=r"^data\.root: ") as caught:
        load(root)
    assert proposed in str(caught.value)


@pytest.mark.parametrize("key", ["train_folder", "test_folder"])
def test_a_folder_that_a_key_names_and_that_is_missing(root: Path, key: str):
    with pytest.raises(UserError, match=rf"^data\.{key}: .* has no folder nowhere/"):
        list_files(FolderData.model_validate({"root": str(root), key: "nowhere"}))
