"""Tests streamed folders: listing, scan, bad files, copies of odd files, and the cache between runs."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import FolderData, load_config
from pipeline.data import build_loaders
from pipeline.data.datasets import folder
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.load import load_splits
from pipeline.data.files import scan
from pipeline.data.files.decode import open_rgb
from pipeline.data.files.image_formats import NO_IMAGE
from pipeline.errors import UserError
from tests.class_folders import set_age
from tests.pictures import bad_pictures, damaged_inside, encoded, make_folder, odd_pictures, picture, save


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "root", train=3, test=2)


def load(root: Path, is_main: bool = True, **changes: Any) -> Any:
    values = {"root": str(root), "image_size": 32, "num_threads": 2, **changes}
    return load_splits(FolderData.model_validate(values), 0, is_main=is_main)


def size_of(path: Path) -> list[int]:
    """Return height and width."""
    return list(open_rgb(path).size[::-1])


def test_what_is_larger_than_the_limit_is_streamed(root: Path):
    splits = load(root)
    assert isinstance(splits.train, FileSet) and isinstance(splits.test, FileSet)
    assert list(splits.train.sample_paths) == [
        f"train/{name}/{number}.jpg" for name in "ab" for number in range(3)
    ]
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and splits.class_names == ("a", "b")
    assert splits.train.sizes.tolist() == [size_of(root / path) for path in splits.train.sample_paths]
    assert splits.image_size == (32, 32)
    assert not isinstance(load(root, cache_below=160).train, FileSet)


def test_statistics_are_those_of_the_pixels_that_evaluation_shows(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    splits = load(root)
    pixels = splits.train.pixels(np.arange(len(splits.train))) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(splits.std, pixels.std((0, 1, 2)))
    monkeypatch.setattr(folder, "read_centre", lambda *args: pytest.fail("decoded again"))
    assert load(root, is_main=False).mean == splits.mean
    assert load(root, mean=[0.5] * 3, std=[0.2] * 3, image_size=64).mean == (0.5,) * 3


def test_the_holdout_is_streamed_too(root: Path):
    (root / "train/b/x.png").write_bytes(odd_pictures()["transparent.png"])
    splits = load(root, holdout=4)
    assert len(splits.holdout) == 4 and len(splits.train) == 3
    paths = [*splits.holdout.sample_paths, *splits.train.sample_paths]
    assert sorted(paths) == sorted(load(root).train.sample_paths)
    for part in (splits.holdout, splits.train):
        for sample, path in enumerate(part.sample_paths):
            assert part.sizes[sample].tolist() == size_of(root / path)
            assert (part.file(sample) == root / path) == (not path.endswith("png"))
        assert list(part.sample_paths) == sorted(part.sample_paths)


def test_oddities_are_shown_as_pillow_shows_them(root: Path):
    for name, content in odd_pictures().items():
        (root / "train/a" / name).write_bytes(content)
    train = load(root).train
    replaced = {Path(train.sample_paths[sample]).name for sample in train.replaced}
    assert replaced == {"cmyk.jpg", "exif_as_long.jpg", "exif_damaged.jpg", "palette.png", "transparent.png"}
    for sample, path in enumerate(train.sample_paths):
        original, read = open_rgb(root / path), open_rgb(train.file(sample))
        assert (np.asarray(original) == np.asarray(read)).all()
        assert train.sizes[sample].tolist() == [read.height, read.width]


def test_a_huge_image_is_only_measured(root: Path, monkeypatch: pytest.MonkeyPatch):
    save(root / "train/a/huge.png", Image.new("L", (12_000, 9_000)))
    monkeypatch.setattr(scan, "open_rgb", lambda path: pytest.fail(f"{path} is decoded"))
    splits = load(root, mean=[0.5] * 3, std=[0.2] * 3)
    assert splits.train.sizes.max(0).tolist() == [9_000, 12_000]


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_a_huge_image_is_trained_on(root: Path, loader: str):
    os.link(save(root / "train/a/huge.jpg", Image.new("L", (12_000, 9_000), 90)), root / "val/a/huge.jpg")
    keys = [
        "data.dataset=folder",
        f"data.root={root}",
        "data.image_size=32",
        "data.batch_size=7",
        "data.eval_batch_size=5",
    ]
    # given, because computing them would decode the image once more
    plain = ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.2, 0.2, 0.2]"]
    config = load_config(overrides=[*keys, *plain, "data.num_threads=1", f"data.loader={loader}"])
    built = build_loaders(config, load_splits(config.data, 0), torch.device("cpu"))
    (train_batch,), (test_batch,) = built.train, built.test
    assert (
        len(train_batch.images) == 7 and torch.isfinite(train_batch.images).all() and test_batch.valid.all()
    )


def test_bad_files_stop_the_run_in_one_message(root: Path):
    for name, content in bad_pictures().items():
        (root / "train/a" / name).write_bytes(content)
    (root / "val/b/link.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "val/b/pipe.jpg")
    with pytest.raises(UserError) as caught:
        load(root)
    first, *lines = str(caught.value).splitlines()
    assert (
        first
        == "data.root: 6 of 16 images cannot be read; replace or remove them, or set data.on_bad_image=skip:"
    )
    names = [
        "train/a/cut.jpg",
        "train/a/cut.png",
        "train/a/empty.jpg",
        "train/a/text.jpg",
        "val/b/link.png",
        "val/b/pipe.jpg",
    ]
    assert [line.partition(": ")[0] for line in lines] == [f"  {root / name}" for name in names]
    assert "truncated" in lines[0] and "empty" in lines[2] and NO_IMAGE in lines[3]


@pytest.mark.parametrize("cache_below", [64, 200])
def test_bad_files_are_left_out_and_listed(root: Path, cache_below: int, caplog: pytest.LogCaptureFixture):
    expected = load(root, cache_below=cache_below)
    for name, content in bad_pictures().items():
        (root / "train/a" / f"0{name}").write_bytes(content)
        (root / "val/b" / name).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        splits = load(root, on_bad_image="skip", cache_below=cache_below)
    assert "8 of 18 images cannot be read and are left out" in caplog.text
    assert all(str(root / "train/a" / f"0{name}") in caplog.text for name in bad_pictures())
    again = load(root, on_bad_image="skip", cache_below=cache_below, is_main=False)
    for part in ("train", "test"):
        reference = getattr(expected, part)
        for actual in (getattr(splits, part), getattr(again, part)):
            assert (
                tuple(actual.sample_paths) == tuple(reference.sample_paths)
                and (actual.labels == reference.labels).all()
            )
            assert (
                actual.pixels(np.arange(len(actual))) == reference.pixels(np.arange(len(reference)))
            ).all()
    assert splits.mean == expected.mean
    with pytest.raises(UserError, match="8 of 18 images cannot be read; replace"):
        load(root, cache_below=cache_below)


@pytest.mark.parametrize(("offset", "value"), [(1, 0xC3), (4, 12)], ids=["lossless", "12 bits"])
def test_a_jpeg_that_no_decoder_here_knows_is_named(root: Path, offset: int, value: int):
    """The file is complete."""
    content = bytearray(encoded(picture(80, 100)))
    content[content.index(b"\xff\xc0") + offset] = value
    (root / "train/a/other.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read(.*\n)+.*/train/a/other\.jpg: .+"):
        load(root, mean=[0.5] * 3, std=[0.2] * 3)


def test_damage_that_only_decoding_shows_is_named_where_it_is_met(root: Path):
    """Header and end are intact: the scan sees nothing, but the statistics come from decoded images."""
    for name in ("damaged.png", "too.png"):
        (root / "train/a" / name).write_bytes(damaged_inside())
    message = (
        r"data\.root: 2 of a sample of 8 images .*check-data.*data\.on_bad_image=skip:"
        r"\n  .*/a/damaged\.png: .+\n  .*/too\.png: .+$"
    )
    with pytest.raises(UserError, match=message):
        load(root)


@pytest.mark.parametrize("keys", [{}, {"mean": [0.5] * 3, "std": [0.2] * 3}], ids=["computed", "given"])
def test_damage_that_only_decoding_shows_is_left_out(
    root: Path, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    load(root, mean=[0.5] * 3, std=[0.2] * 3)  # the cache of a run that did not decode all files
    for path in ("train/a/damaged.png", "val/b/too.png"):
        (root / path).write_bytes(damaged_inside())
    splits = load(root, on_bad_image="skip", **keys)
    assert "2 of 12 images cannot be read and are left out" in caplog.text
    assert (len(splits.train), len(splits.test)) == (6, 4)
    assert splits.train.all_decoded and not splits.train.replaced


def test_a_class_of_bad_files_only_is_named(root: Path):
    for name, content in bad_pictures().items():
        (root / "train/c").mkdir(exist_ok=True)
        (root / "train/c" / name).write_bytes(content)
    with pytest.raises(UserError, match="file for class c in"):
        load(root, on_bad_image="skip")


def test_a_file_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch):
    """The test raises the system's error itself, because root may read every file."""
    opened = os.open

    def refuse(path: Any, *rest: Any, **more: Any) -> int:
        if os.fsencode(path).endswith(b"train/a/0.jpg"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"1 of .*(.*\n)+.*train/a/0\.jpg: .*Permission denied"):
        load(root)


def test_the_scan_is_kept_until_a_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch):
    load(root)
    (entry,) = (root / ".quickres").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(scan, "read_header", lambda *args: pytest.fail("scanned again"))
        load(root)
    save(root / "train/a/0.jpg", picture(50, 70))
    assert load(root).train.sizes[0].tolist() == [50, 70]
    assert entry.exists() and len(list((root / ".quickres").iterdir())) == 2


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_a_run_can_read_its_cache_entry_after_the_files_have_changed(root: Path, loader: str):
    """Runs on newer files keep the copies of odd images, until no run has opened them for 30 days."""
    (root / "train/b/x.png").write_bytes(odd_pictures()["transparent.png"])
    keys = [
        "data.dataset=folder",
        f"data.root={root}",
        "data.batch_size=7",
        "data.num_threads=1",
        f"data.loader={loader}",
    ]
    config = load_config(overrides=keys)
    splits = load_splits(config.data, 0)
    loaders = build_loaders(config, splits, torch.device("cpu"))
    (entry,) = (root / ".quickres").iterdir()
    for number in range(2):
        save(root / f"train/a/new{number}.jpg", picture(90, 90))
        load(root)
        assert len(list((root / ".quickres").iterdir())) == 2 + number
    assert len(list(loaders.train)) == 1
    set_age(entry, days=31)
    save(root / "train/a/new.jpg", picture(90, 90))
    load(root)
    assert not entry.exists() and len(list((root / ".quickres").iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest", "copy", "emptied"])
def test_a_damaged_scan_is_made_again(root: Path, damage: str, caplog: pytest.LogCaptureFixture):
    (root / "train/b/x.png").write_bytes(odd_pictures()["transparent.png"])
    expected = load(root)
    (entry,) = (root / ".quickres").iterdir()
    sizes = entry / "sizes.npz"
    if damage == "cut":
        sizes.write_bytes(sizes.read_bytes()[:-20])
    elif damage == "gone":
        sizes.unlink()
    elif damage == "manifest":
        (entry / "manifest.json").write_text("[1]")
    elif damage == "emptied":
        next(entry.glob("train-*.png")).write_bytes(b"")
    else:
        next(entry.glob("train-*.png")).unlink()
    splits = load(root)
    assert "is damaged" in caplog.text
    assert (
        splits.train.sizes == expected.train.sizes
    ).all() and splits.train.replaced.keys() == expected.train.replaced.keys()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda old: old[:300],
        lambda old: old[:-1000] + bytes(1000),
        lambda _: b"PK\3\4" + bytes(99),
    ],
)
def test_damaged_statistics_are_made_again(
    root: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
):
    first = load(root).mean
    (path,) = root.glob(".quickres/scan-*/histogram-*.npy")
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    assert load(root).mean == first
    assert f"the cache {path} is damaged" in caplog.text
    assert path.read_bytes() == intact


def test_a_cache_that_cannot_be_written(root: Path):
    (root / ".quickres").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir: cannot write .*scan-.*; set data\.cache_dir"):
        load(root)


@pytest.mark.slow
def test_many_files_in_one_folder(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Links to a few files take no space on the disk, and are listed and scanned in the same way."""
    for number in range(30_000):
        os.link(root / f"train/a/{number % 3}.jpg", root / f"train/b/link{number:06d}.jpg")
    train = load(root, mean=[0.5] * 3, std=[0.2] * 3).train
    monkeypatch.setattr(scan, "read_header", lambda path, _: pytest.fail(f"{path} is read again"))
    again = load(root, mean=[0.5] * 3, std=[0.2] * 3).train
    assert len(train) == len(again) == 30_006 and (train.sizes == again.sizes).all()
    assert len(train.sample_paths.block) < 30 * len(train)
