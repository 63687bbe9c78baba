"""Tests the search for shards: patterns with braces, names in a folder, and compressed files."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import ShardData
from pipeline.data.files.shards.patterns import expand_braces, find_shards, first_shard
from pipeline.data.files.shards.remote import Copies
from pipeline.errors import UserError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def find(root: Path, part: str = "train", **keys: Any) -> list[str]:
    config = ShardData(root=str(root), **keys)
    return [shard.name for shard in find_shards(part, root, config, Copies(config))]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{0..2}.tar", ["a-0.tar", "a-1.tar", "a-2.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{2..1}{x,y}", ["a-2x", "a-2y", "a-1x", "a-1y"]),
        ("{a,b{0..1}}", ["a", "b0", "b1"]),
        ("{a,}x", ["ax", "x"]),
        ("{a}-{..}-{1..b}", ["{a}-{..}-{1..b}"]),
    ],
)
def test_braces_are_those_of_a_shell(pattern: str, texts: list[str]):
    assert expand_braces(pattern) == texts


@pytest.mark.parametrize("pattern", ["{0..9999999}", "{0..999}{0..999}{0..9}"])
def test_endless_braces_are_refused(tmp_path: Path, pattern: str):
    with pytest.raises(UserError, match=r"^data.train_shards: .* stands for more than 100,000 shards"):
        find(tmp_path, train_shards=pattern)


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (["train-1.tar", "train-0.tar", "val-0.tar"], ["train-0.tar", "train-1.tar"], ["val-0.tar"]),
        (["train-0.tar", "val-0.tar", "test-0.tar"], ["train-0.tar"], ["test-0.tar"]),
        (
            ["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"],
            ["imagenet1k-train-0000.tar"],
            ["imagenet1k-validation-00.tar"],
        ),
        (
            ["train-00000-of-00001-abc.parquet", "validation-00000-of-00001.parquet", "train.txt"],
            ["train-00000-of-00001-abc.parquet"],
            ["validation-00000-of-00001.parquet"],
        ),
        (["train/b.tar", "train/a.tar", "val/c.tar"], ["train/a.tar", "train/b.tar"], ["val/c.tar"]),
        (["train.tar", "Test.parquet", ".train-0.tar", "strain-0.tar"], ["train.tar"], ["Test.parquet"]),
    ],
)
def test_names_tell_the_part(tmp_path: Path, names: list[str], train: list[str], test: list[str]):
    make(tmp_path, *names)
    assert (find(tmp_path), find(tmp_path, "test")) == (train, test)
    assert first_shard(tmp_path) is not None


def test_patterns_choose_files_folders_and_places_elsewhere(tmp_path: Path):
    root = make(tmp_path / "root", "a-0.tar", "a-1.tar", "a-2.txt", "sub/x.tar", "sub/y.parquet")
    other = make(tmp_path / "other", "z.tar") / "z.tar"
    assert find(root, train_shards="a-{0..1}.tar") == ["a-0.tar", "a-1.tar"] == find(root, train_shards="a-*")
    assert find(root, train_shards="sub") == ["sub/x.tar", "sub/y.parquet"]
    assert find(root, "test", test_shards="{a-1.tar,a-*.tar}") == ["a-1.tar", "a-0.tar"]  # each once
    (name,) = find(root, train_shards=str(other))
    assert (root / name).samefile(other)


def test_a_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(make(tmp_path / "home", "a.tar")))
    (name,) = find(make(tmp_path / "root", "b.tar"), train_shards="~/a.tar")
    assert name.endswith("home/a.tar")


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "nothing": (
        [],
        {},
        r"^data.root: no shards with the word train or training in .*; expected: ROOT/train-",
    ),
    "others": (["a.tar", "b.tar"], {}, r"^data.root: .*; it holds a.tar, b.tar; expected"),
    "class folders": (["train/cat/0.jpg"], {}, r"it holds class folders: set data.dataset=folder"),
    "a missing one": (
        ["a-0.tar"],
        {"train_shards": "a-{0..1}.tar"},
        r"^data.train_shards: there is no file .*a-1.tar",
    ),
    "no fit": (["a-0.tar"], {"train_shards": "b-*.tar"}, r"^data.train_shards: no shard fits b-\*.tar"),
    "no shard": (
        ["a.zip"],
        {"train_shards": "a.zip"},
        r"a.zip is no shard: its name ends neither in .tar nor",
    ),
    "compressed": (
        ["train-0.tar.gz"],
        {},
        r"train-0.tar.gz: a compressed tar .*unpack it first: gzip -d train-0.tar.gz",
    ),
    "lz4": (["train-0.tar.lz4"], {}, r"unpack it first: lz4 -d --rm train-0.tar.lz4"),
    "short": (["train-0.tbz2"], {}, r"unpack it first: bzip2 -d train-0.tbz2"),
    "zstd": (
        ["t.tar.zst", "u.tar.zst"],
        {"train_shards": "*"},
        r"t.tar.zst and 1 more: .*zstd -d --rm t.tar.zst",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_found_is_named(tmp_path: Path, name: str):
    names, keys, message = WRONG[name]
    with pytest.raises(UserError, match=message):
        find(make(tmp_path, *names), **keys)
