"""Tests list files that are not as they must be: the message names list, line, and what a line must be."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import load_config
from pipeline.data.datasets.counts import num_classes_of
from pipeline.data.files.paths import Paths
from pipeline.errors import UserError
from tests.class_folders import load, make_class_folders

LINES = [f"train/{name}/{number}.png {name}" for name in "ab" for number in range(3)]
RULE = "absolute or from data.root="


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_class_folders(tmp_path / "root")
    (tmp_path / "test.txt").write_text("test/a/0.png a\ntest/b/0.png b\n")
    return root


def refused(root: Path, text: str, **keys: Any) -> str:
    """Load with a training list of this text, and return the error."""
    lists = {name: str(root.parent / f"{name[:-5]}.txt") for name in ("train_list", "test_list")}
    Path(lists["train_list"]).write_text(text)
    with pytest.raises(UserError, match=r"^data\.(train|test)_list: ") as caught:
        load(root, **lists, **keys)
    assert RULE in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("on_bad_image", ["stop", "skip"])
@pytest.mark.parametrize("head", ["path label", "filename\tclass", "# path label", "#a comment of ours"])
def test_headers_and_comments_are_named(root: Path, head: str, on_bad_image: str):
    message = refused(root, "\n".join([head, *LINES]), on_bad_image=on_bad_image)
    assert f"{root.parent}/train.txt:1: " in message and "remove it" in message


def test_a_header_over_numbers_is_no_class(root: Path):
    text = "\n".join(["path label", *LINES]).replace(" a", " 0").replace(" b", " 1")
    assert "train.txt:1: 'path label'" in refused(root, text)
    keys = [f"data.{part}_list={root.parent / 'train.txt'}" for part in ("train", "test")]
    with pytest.raises(UserError, match=r"train\.txt:1: 'path label'"):
        num_classes_of(load_config(overrides=["data.dataset=folder", f"data.root={root}", *keys]))


def test_every_line_without_a_label_is_named(root: Path):
    message = refused(root, "\n".join([*LINES, *(line.replace(" ", ",") for line in LINES)]))
    for number in range(7, 13):
        assert f"train.txt:{number}: 'train/" in message
    assert "and 3 more" in refused(root, "one_word\n" * 13)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        (" ", ", ", "train/a/0.png,"),
        ("train/", "images/", "images/a/0.png"),
        ("train/", "/nowhere/", "/nowhere/a/0.png"),
        ("", "", "test/a/9.png"),
    ],
    ids=["comma", "other folder", "absolute", "one file"],
)
def test_files_that_do_not_exist_are_named_with_their_lines(root: Path, old: str, new: str, name: str):
    lines = [line.replace(old, new) for line in LINES] if old else ["test/a/9.png a", *LINES]
    message = refused(root, "\n".join(lines))
    assert message.startswith("data.train_list: ") and "data.on_bad_image=skip" in message
    assert name in message and f"(line 1 of {root.parent}/train.txt)" in message


def test_labels_of_two_words_are_named(root: Path):
    words = [line + "pple red" for line in LINES]
    message = refused(root, "\n".join(words))
    assert message.startswith(f"data.train_list: {root.parent}/train.txt:1: ") and "names no file" in message
    (root.parent / "test.txt").write_text("test/a/0.png apple red\n")
    assert "train/a/0.png apple: " in refused(root, "\n".join(words + LINES))


def test_paths():
    names = ["train/a/0.jpg", "ß 日本.JPEG", os.fsdecode(b"\xff.png"), "", "x"]
    paths = Paths.of(names)
    assert list(paths) == names and len(paths) == 5 and paths[-1] == "x" and paths[1:3] == names[1:3]
    assert list(paths.take(np.array([4, 1]))) == ["x", names[1]]
    assert list(Paths.joined([paths, Paths.of([]), paths])) == names * 2
    assert paths.raw(0) == b"train/a/0.jpg" and "x" in paths
    with pytest.raises(IndexError):
        paths[5]
