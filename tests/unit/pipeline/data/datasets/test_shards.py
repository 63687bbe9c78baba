"""Tests data sets in shards: equal to the same class folders, cached and checked as these."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import ShardData
from pipeline.data import ImageSet
from pipeline.data.datasets.counts import count_images, num_classes_of
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.datasets.load import load_test
from pipeline.data.files.file_part import FilePart
from pipeline.data.files.shards import index
from pipeline.errors import TrainingError, UserError
from tests.class_folders import load
from tests.pictures import bad_pictures, encoded, flip_bytes, make_folder, picture
from tests.shards import images_of, load_shards, members_of, pack, write_parquet, write_tar
from tests.tiny import tiny_config

PARTS = {"train": "train", "val": "val"}
KINDS = ["tar", "parquet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make class folders, with unusual images among others."""
    return make_folder(tmp_path_factory.mktemp("images"), train=4, test=2, odd=True)


@pytest.fixture(params=KINDS)
def shards(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    return pack(folder, tmp_path / "shards", request.param, PARTS, 3)


def pixels(part: Any) -> np.ndarray:
    return part.images if isinstance(part, ImageSet) else part.pixels(np.arange(len(part)))


@pytest.mark.parametrize("keys", [{}, {"cache_below": 200}], ids=["streamed", "decoded"])
def test_shards_hold_the_images_of_the_folder(
    folder: Path, shards: Path, tmp_path: Path, keys: dict[str, Any]
):
    actual = load_shards(shards, image_size=24, **keys)
    expected = load(folder, image_size=24, cache_dir=str(tmp_path / "cache"), **keys)
    assert isinstance(actual.train, FileSet) == (not keys)
    for ours, theirs in ((actual.train, expected.train), (actual.test, expected.test)):
        assert (ours.labels == theirs.labels).all() and (pixels(ours) == pixels(theirs)).all()
        if isinstance(ours, FileSet):
            assert (ours.sizes == theirs.sizes).all() and list(ours.replaced) == list(theirs.replaced)
    assert (actual.mean, actual.std) == (expected.mean, expected.std)
    is_parquet = next(shards.iterdir()).suffix == ".parquet" or "parquet" in str(list(shards.iterdir()))
    assert actual.class_names == (("a", "b") if is_parquet else ("0", "1"))


def test_an_image_is_a_part_of_its_shard(shards: Path, folder: Path):
    train = load_shards(shards).train
    part = train.file(0)
    assert isinstance(part, FilePart) and part.read() == images_of(folder, "train")[0][0].read_bytes()
    name = "train-00000-of-00003." + (
        "tar:0000.jpg" if (shards / "train-00000-of-00003.tar").exists() else "parquet:0/0.jpg"
    )
    assert train.sample_paths[0] == name and str(part) == f"{shards}/{name}"


def test_a_holdout_is_taken_out(shards: Path):
    splits = load_shards(shards, holdout=4)
    assert len(splits.holdout) == 4 and len(splits.train) == 18
    paths = [*splits.holdout.sample_paths, *splits.train.sample_paths]
    assert sorted(paths) == sorted(load_shards(shards).train.sample_paths)
    for part in (splits.holdout, splits.train):
        assert (pixels(part).shape[0]) == len(part)


# --- the index ---


def test_the_index_is_made_once(shards: Path, monkeypatch: pytest.MonkeyPatch):
    before = load_shards(shards)
    monkeypatch.setattr(index, "make_index", lambda *_: pytest.fail("indexed again"))
    for is_main in (True, False):
        after = load_shards(shards, is_main=is_main)
        assert list(after.train.sample_paths) == list(before.train.sample_paths)
        assert (pixels(after.test) == pixels(before.test)).all()


@pytest.mark.parametrize("keys", [{"label_key": "label"}, {"image_key": "jpg"}], ids=str)
def test_another_key_or_a_changed_shard_makes_another_index(shards: Path, keys: dict[str, Any]):
    load_shards(shards)
    entries = list((shards / ".quickres").glob("shards-*"))
    path = sorted(shards.glob("val-00000*"))[0]
    os.utime(path, ns=(1, 1))
    load_shards(shards)
    assert len(list((shards / ".quickres").glob("shards-*"))) == len(entries) + 1
    with pytest.raises(UserError, match=r"data.train_shards: 6 of 6 shards cannot be used"):
        load_shards(shards, **{**keys, **dict.fromkeys(keys, "nowhere")})


def test_a_damaged_index_is_made_again(shards: Path, caplog: pytest.LogCaptureFixture):
    expected = load_shards(shards)
    (entry,) = (shards / ".quickres").glob("shards-*")
    kept = {path.name: path.read_bytes() for path in entry.iterdir()}
    for name, content in kept.items():
        for damaged in (content[:-10], b""):
            (entry / name).write_bytes(damaged)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                actual = load_shards(shards)
            assert "is damaged" in caplog.text, name
            assert (pixels(actual.train) == pixels(expected.train)).all()


def test_other_processes_never_make_it(shards: Path):
    with pytest.raises(AssertionError, match="the main process has to build it first"):
        load_shards(shards, is_main=False)


def test_counting_writes_nothing(shards: Path):
    config = ShardData(root=str(shards))
    counts = count_images(config, 0)
    assert (counts.train, counts.test, counts.num_classes) == (22, 18, 2)
    assert num_classes_of(tiny_config().model_copy(update={"data": config})) == 2
    assert not (shards / ".quickres").exists()


# --- images that are bad, and labels ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", [{}, {"cache_below": 200}], ids=["streamed", "decoded"])
def test_bad_images_are_named_by_shard_and_name(tmp_path: Path, kind: str, keys: dict[str, Any], caplog: Any):
    root = make_folder(tmp_path / "images", train=3, test=1)
    for name, content in bad_pictures().items():
        (root / "train/b" / name).write_bytes(content)
    packed = pack(root, tmp_path / "shards", kind, PARTS, 1)
    numbers = [
        number for number, (path, _) in enumerate(images_of(root, "train")) if path.name in bad_pictures()
    ]
    with pytest.raises(UserError) as caught:
        load_shards(packed, **keys)
    assert f"{len(numbers)} of {6 + len(numbers) + 2} images cannot be read" in str(caught.value)
    name = f"{packed}/train-00000-of-00001.{kind}:" + (
        f"{numbers[0]:04d}" if kind == "tar" else f"{numbers[0]}/"
    )
    assert name in str(caught.value) and "data.on_bad_image=skip" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        splits = load_shards(packed, on_bad_image="skip", **keys)
    assert name in caplog.text
    assert (pixels(splits.train) == pixels(load(root, on_bad_image="skip", **keys).train)).all()


def test_damage_inside_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = make_folder(tmp_path / "images", train=2, test=1)
    (root / "val/b/0.jpg").write_bytes(flip_bytes(encoded(picture(80, 100), quality=90)))
    packed = pack(root, tmp_path / "shards", "tar", PARTS, 1)
    with caplog.at_level(logging.WARNING):
        load_shards(packed)
    assert f"{packed}/val-00000-of-00001.tar:0001.jpg: Corrupt JPEG data" in caplog.text


def test_images_without_labels_are_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images = images_of(make_folder(tmp_path / "images", train=3, test=1), "train")
    members = [member for member in members_of(images) if member[0] != "0001.cls"]
    for part in ("train", "val"):
        write_tar(tmp_path / "shards" / f"{part}-0.tar", members)
    with pytest.raises(
        UserError, match=r"^data.train_shards: 1 image has no label; .*\n  train-0.tar:0001.jpg"
    ):
        load_shards(tmp_path / "shards")
    with caplog.at_level(logging.WARNING):
        splits = load_shards(tmp_path / "shards", on_bad_image="skip")
    assert "1 image has no label and is left out" in caplog.text and len(splits.train) == 5


LABELS: dict[str, tuple[list[str], list[str], str]] = {
    "below 0": (
        ["0", "1"],
        ["-1", "-1"],
        r"^data.test_shards: the label -1 of val-0.tar:0.jpg is below 0: images without a label",
    ),
    "a gap": (["0", "2", "2"], ["0"], r"^data.train_shards: no .* for class 1 in .*; give all shards"),
    "too large": (
        ["0", "70000"],
        ["0"],
        r"^data.train_shards: the label 70000 of train-0.tar:1.jpg is too l",
    ),
    "a fraction": (
        ["0", "1.5", "1"],
        ["0"],
        r"^data.train_shards: the label 1.5 of train-0.tar:1.jpg is no whole number, and other labels are",
    ),
    "no number": (["0", "1"], ["0", "nan"], r"^data.test_shards: the label nan of val-0.tar:1.jpg is no who"),
    "no images": (["0", "1"], [], r"^data.test_shards: there is no image in 1 shard; give other"),
    "unknown": (["cat", "dog"], ["cow"], r"^data.test_shards: has class cow, unknown to data.train_shards"),
    "one class": (["0", "0"], ["0"], r"^data.train_shards: .* holds one class, class 0; training needs"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_do_not_fit(tmp_path: Path, name: str):
    train, test, message = LABELS[name]
    for part, labels in (("train", train), ("val", test)):
        write_tar(tmp_path / f"{part}-0.tar", labelled(labels))
    with pytest.raises(UserError, match=message):
        load_shards(tmp_path)


def labelled(labels: list[str]) -> list[tuple[str, bytes]]:
    image = encoded(picture(40, 50))
    return [
        (f"{number}.{key}", content)
        for number, label in enumerate(labels)
        for key, content in (("jpg", image), ("cls", label.encode()))
    ]


def test_labels_may_be_names_and_may_get_others(tmp_path: Path):
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", labelled(["dog", "a cat", "dog"]))
    splits = load_shards(tmp_path)
    assert splits.class_names == ("a cat", "dog") and splits.train.labels.tolist() == [1, 0, 1]
    (tmp_path / "names.txt").write_text("dog\tDogs\na cat\tCats\n")
    assert load_shards(tmp_path, class_names=str(tmp_path / "names.txt")).class_names == ("Cats", "Dogs")


def test_whole_numbers_may_be_kept_as_floats(tmp_path: Path):
    numbers = [f"{number}.0" for number in range(11)]
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", labelled(numbers))
    assert load_shards(tmp_path).train.labels.tolist() == list(range(11))  # as texts, 10.0 is before 2.0


def test_class_labels_must_be_the_same_in_all_shards(tmp_path: Path):
    rows = [{"image": {"bytes": encoded(picture(40, 50)), "path": None}, "label": label} for label in (0, 1)]
    write_parquet(tmp_path / "train-0.parquet", rows, ["a", "b"])
    write_parquet(tmp_path / "val-0.parquet", rows, ["a", "c"])
    with pytest.raises(UserError, match=r"name their classes differently from data.train_shards"):
        load_shards(tmp_path)
    write_parquet(tmp_path / "val-0.parquet", rows, ["a", "b"])
    no_name = {"image": rows[0]["image"], "label": 2}
    write_parquet(tmp_path / "val-0.parquet", [*rows, no_name], ["a", "b"])
    with pytest.raises(
        UserError, match=r"test_shards: the label 2 of val-0.parquet:2 has no name among the 2"
    ):
        load_shards(tmp_path)
    write_parquet(tmp_path / "train-1.parquet", rows, ["b", "a"])
    with pytest.raises(UserError, match=r"data.train_shards: the shards name their classes differently"):
        load_shards(tmp_path)


def test_a_test_image_that_is_a_training_image_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_tar(tmp_path / "train-0.tar", labelled(["0", "1"]))
    with caplog.at_level(logging.WARNING):
        load_shards(tmp_path, test_shards="train-0.tar")
    assert "data.test_shards: 2 of 2 test files are training files too" in caplog.text


# --- the test images alone ---


def test_the_test_images_alone_need_no_training_shard(shards: Path):
    splits = load_shards(shards)
    expected = pixels(splits.test)
    for path in shards.glob("train-*"):
        path.unlink()
    shutil.rmtree(shards / ".quickres")
    test = load_test(ShardData(root=str(shards), image_size=8), 0, splits.class_names, streamed=True)
    assert (test.labels == splits.test.labels).all() and (pixels(test) == expected).all()
    with pytest.raises(
        UserError, match=r"^data.test_shards: the test images are of class.*network was trained on"
    ):
        load_test(ShardData(root=str(shards), image_size=8), 0, ("x", "y"), streamed=True)


def test_a_few_test_images_of_many_classes(tmp_path: Path):
    """The labels of the test images alone may be larger than their number."""
    write_tar(tmp_path / "test-0.tar", labelled(["907", "13"]))
    config, names = ShardData(root=str(tmp_path)), tuple(map(str, range(1000)))
    assert load_test(config, 0, names, streamed=True).labels.tolist() == [907, 13]
    with pytest.raises(
        UserError, match=r"^data.test_shards: the test images are of class 907, but the network"
    ):
        load_test(config, 0, names[:500], streamed=True)


# --- a shard that changes during a run ---


def test_a_shard_that_is_cut_off_later_is_named(tmp_path: Path, folder: Path):
    packed = pack(folder, tmp_path / "shards", "tar", PARTS, 1)
    train = load_shards(packed).train
    path = packed / "train-00000-of-00001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(
        TrainingError, match=r"train-00000-of-00001.tar:0021.*: its file ends before the image"
    ):
        train.read_centre(len(train) - 1)


def test_shards_of_no_images_are_no_fault_beside_others(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", labelled(["0", "1"]))
    write_tar(tmp_path / "train-1.tar", [])
    with caplog.at_level(logging.WARNING):
        assert len(load_shards(tmp_path).train) == 2
    assert "train-1.tar: it holds no files" in caplog.text


def test_a_download_holds_its_shards_one_folder_down(tmp_path: Path):
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data" / "train-0.tar", labelled(["0", "1"]))
    with pytest.raises(
        UserError, match=r"it holds data/train-0.tar: set data.root=.*/data if all shards are"
    ):
        load_shards(tmp_path)
    with pytest.raises(UserError, match=r"set data.dataset=shards, as for data/train-0.tar"):
        load(tmp_path)


def test_no_class_folders_but_shards(shards: Path):
    with pytest.raises(
        UserError, match=r"has no folder train/.*; or set data.dataset=shards, as for train-00000"
    ):
        load(shards)
