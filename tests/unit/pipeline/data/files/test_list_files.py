"""Tests lists of files and of class names: what is read from them, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import load_config
from pipeline.data import build_loaders
from pipeline.data.datasets.load import load_splits
from pipeline.errors import UserError
from tests.class_folders import load
from tests.pictures import make_folder, picture, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "root", train=3, test=2)


def test_list_files(root: Path, tmp_path: Path):
    (tmp_path / "train.txt").write_text("train/a/0.jpg dog\n\ntrain/b/1.jpg\tcat\ntrain/a/2.jpg  dog\n")
    (tmp_path / "test.txt").write_text("val/b/0.jpg cat\n")
    lists: dict[str, Any] = {
        "train_list": str(tmp_path / "train.txt"),
        "test_list": str(tmp_path / "test.txt"),
    }
    splits = load(root, image_size=32, **lists)
    assert splits.class_names == ("cat", "dog")
    assert splits.train.labels.tolist() == [1, 0, 1] and splits.test.labels.tolist() == [0]
    assert list(splits.train.sample_paths) == ["train/a/0.jpg", "train/b/1.jpg", "train/a/2.jpg"]
    # line ends and byte-order mark of Windows
    (tmp_path / "train.txt").write_text(
        "train/a/0.jpg 1\r\ntrain/b/1.jpg 0\r\nthe file.jpg 2\r\n", "utf-8-sig"
    )
    (tmp_path / "test.txt").write_text("val/b/0.jpg 1\n")
    with pytest.raises(UserError, match=r"1 of 4 images .*(.*\n)+.*the file\.jpg: not a file"):
        load(root, image_size=32, **lists)
    save(root / "the file.jpg", picture(90, 90))
    assert load(root, image_size=32, **lists).class_names == ("0", "1", "2")
    (root / "the file.jpg").rename(root / "the\tfile.jpg")
    (tmp_path / "train.txt").write_text("train/a/0.jpg 1\ntrain/b/1.jpg 0\nthe\tfile.jpg\t 2\n")
    assert list(load(root, image_size=32, **lists).train.sample_paths)[2] == "the\tfile.jpg"


@pytest.mark.parametrize("size", [90, 40])
def test_lists_of_absolute_paths(root: Path, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch):
    """Streamed or decoded, inside the root and elsewhere; the root can be a link or a relative path."""
    (tmp_path / "deep/down").mkdir(parents=True)
    (tmp_path / "deep/down/link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    colours = [(200, 30, 60), (20, 130, 60)]
    files = [root / "one.png", tmp_path / "other/two.png"]
    for path, colour in zip(files, colours, strict=True):
        save(path, Image.new("RGB", (size, size), colour))
    Path("list.txt").write_text(f"{files[0]} 0\n{files[1]} 1\n")
    lists = [
        "data.train_list=list.txt",
        "data.test_list=list.txt",
        "data.batch_size=2",
        "data.eval_batch_size=2",
        "precision.mode=fp32",
    ]
    for link_or_root in (root, Path("root"), Path("deep/down/link")):
        config = load_config(
            overrides=[
                "data.dataset=folder",
                f"data.root={link_or_root}",
                *lists,
                "data.mean=[0, 0, 0]",
                "data.std=[1, 1, 1]",
            ]
        )
        splits = load_splits(config.data, 0)
        (batch,) = build_loaders(config, splits, torch.device("cpu")).test
        np.testing.assert_allclose(255 * batch.images.mean((2, 3)), colours, atol=0.01)
        assert splits.train.sample_paths is not None
        assert [(link_or_root / path).read_bytes() for path in splits.train.sample_paths] == [
            path.read_bytes() for path in files
        ]
        assert link_or_root.is_symlink() or splits.train.sample_paths[0] == "one.png"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a\0.jpg 0", "x 1", r"data\.train_list: .*train\.txt:1: 'a.*\.jpg 0' is not a `path label` line"),
        (
            "a.jpg 0\nb.jpg 1",
            "x -1",
            r"data\.test_list: the label -1 is below 0; number the classes from 0 on",
        ),
        (
            "a.jpg 0\nb.jpg -1",
            "x 0",
            r"data\.train_list: the label -1 is below 0; number the classes from 0 on",
        ),
        (
            "a.jpg 0\nb.jpg 1",
            "x.jpg 0.5\ny.jpg 1",
            r"data\.test_list: the label 0\.5 is no whole number, and other labels are; correct it",
        ),
        (None, "x 1", r"data\.train_list: cannot read .*train\.txt"),
        ("", "x 1", r"data\.train_list: .*train\.txt lists no files"),
        ("a.jpg", "x 1", r"data\.train_list: .*train\.txt:1: 'a\.jpg' is not a `path label` line"),
        ("a.jpg 0\nb.jpg 300000000000", "c.jpg 0", r"data\.train_list: the label 300000000000 means"),
        ("a.jpg dog\nb.jpg cat", "c.jpg cow", r"data\.test_list: has class cow, unknown to data\.train_list"),
        (
            "a.jpg 0\nb.jpg 2\nd.jpg 2",
            "c.jpg 1",
            r"data\.train_list: no .* file for class 1 in .*/train\.txt; .* without a gap$",
        ),
        (
            "a.jpg dog\nb.jpg dog",
            "c.jpg dog",
            r"data\.train_list: .*/train\.txt holds one class, class dog; .* at least two$",
        ),
    ],
)
def test_lists_that_are_not_as_described(
    root: Path, tmp_path: Path, train: str | None, test: str, message: str
):
    for name, text in (("train", train), ("test", test)):
        if text is not None:
            (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        load(
            root, image_size=32, train_list=str(tmp_path / "train.txt"), test_list=str(tmp_path / "test.txt")
        )


def test_class_names(root: Path, tmp_path: Path):
    names = tmp_path / "names.txt"
    names.write_text("b tench, Tinca tinca\nz nothing\na été\n", "utf-8-sig")
    assert load(root, image_size=32, class_names=str(names)).class_names == ("été", "tench, Tinca tinca")
    names.write_text("a\tthe first\n")
    with pytest.raises(UserError, match=r"data\.class_names: .*names\.txt has no line for class b"):
        load(root, image_size=32, class_names=str(names))
