"""Tests the cache of decoded class folders."""

import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import folder
from pipeline.errors import UserError
from tests.class_folders import entries, load, make_class_folders, pixels, save, set_age
from tests.patience import PATIENCE_S


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "decode_files", lambda *args: pytest.fail("decoded again"))


def test_second_start_reads_the_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(root)
    refuse_to_decode(monkeypatch)
    for is_main in (True, False):
        again = load(root, is_main=is_main)
        assert (again.train.images == first.train.images).all()
        assert (again.test.images == first.test.images).all()
        assert (again.mean, again.std) == (first.mean, first.std)
    assert len(entries(root)) == 1


def test_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    load(Path("~/root"), cache_dir="~/cache")
    assert (root.parent / "cache").is_dir()


def test_only_the_main_process_builds(root: Path) -> None:
    with pytest.raises(AssertionError, match="the main process"):
        load(root, is_main=False)


def test_a_changed_folder_is_noticed(root: Path) -> None:
    changes = [
        lambda: save(root / "train/a/0.png", pixels(77)),
        lambda: save(root / "train/b/9.png", pixels(78)),
        lambda: (root / "test/b/0.png").unlink(),
        lambda: (root / "test/a/0.png").rename(root / "test/b/0.png"),
        lambda: (root / "test").rename(root / "val"),
    ]
    load(root)
    before = entries(root)
    for change in changes:
        change()
        splits = load(root)
        after = entries(root)
        assert after != before
        before = after
        assert splits.test.sample_paths is not None
        for image, path in zip(splits.test.images, splits.test.sample_paths, strict=True):
            assert (image == np.asarray(Image.open(root / path))).all()
    splits = load(root)
    assert len(splits.train) == 7
    assert (splits.train.images[0] == pixels(77)).all()


@pytest.mark.parametrize("year", [2400, 1969])
def test_a_file_whose_time_is_far_from_now(tmp_path: Path, year: int) -> None:
    """Clocks are wrong. A file of the year 2400 is read, and a change of its time is noticed."""
    root, found = make_class_folders(tmp_path / "root"), []
    seconds = int(datetime(year, 12, 31, tzinfo=UTC).timestamp())
    for shift in (0, 1):
        os.utime(root / "train/a/0.png", (seconds + shift, seconds + shift))
        assert load(root).train.images.shape == (6, 8, 8, 3)
        found.append(entries(root))
    assert len(found[0]) == 1 and len(found[1]) == 2


def test_an_older_entry_is_removed_when_no_run_has_opened_it_for_30_days(root: Path) -> None:
    load(root)
    (oldest,) = entries(root)
    save(root / "train/a/0.png", pixels(77))
    load(root)
    newer = [name for name in entries(root) if name != oldest]
    assert len(entries(root)) == 2  # a run may still read the older entry
    set_age(root / ".quickres" / oldest, days=31)
    set_age(root / ".quickres" / newer[0], days=29)
    save(root / "train/a/0.png", pixels(78))
    load(root)
    assert oldest not in entries(root) and newer[0] in entries(root) and len(entries(root)) == 2


def test_reading_an_entry_marks_it_as_used(root: Path) -> None:
    load(root)
    manifests = list(root.glob(".quickres/*/manifest.json"))
    for manifest in manifests:
        set_age(manifest.parent, days=31)
    load(root, is_main=False)
    assert len(manifests) == 2 and all(time.time() - path.stat().st_mtime < 3600 for path in manifests)


def test_a_change_of_time_or_content_alone_is_noticed(root: Path) -> None:
    load(root)
    before = entries(root)
    path = root / "train/a/0.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    load(root)
    assert entries(root) != before


def test_sizes_have_entries_of_their_own(root: Path) -> None:
    load(root)
    load(root, image_size=16)
    assert [name.partition("-")[0] for name in entries(root)] == ["16px", "8px"]


def test_data_sets_share_a_cache_dir(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other" / "root"
    shutil.copytree(root, other)
    save(other / "train/a/0.png", pixels(55))
    cache = str(tmp_path / "cache")
    for each in (root, other):
        load(each, cache_dir=cache)
    assert len(list(Path(cache).glob("*px-*"))) == len(list(Path(cache).glob("*scan-*"))) == 2
    assert not (root / ".quickres").exists()
    refuse_to_decode(monkeypatch)
    assert (load(other, cache_dir=cache).train.images[0] == pixels(55)).all()
    assert (load(root, cache_dir=cache).train.images[0] == pixels(0)).all()


@pytest.mark.parametrize(
    "damage",
    ["cut", "flip", "empty", "gone", "pickle", "manifest", "no manifest", "half a manifest", "histogram"],
)
def test_a_damaged_cache_is_rebuilt(root: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(root)
    entry = root / ".quickres" / entries(root)[0]
    file, manifest = entry / "train.npy", entry / "manifest.json"
    content = file.read_bytes()
    file.unlink()  # a new file, because `expected` has the old one mapped
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "pickle":
        np.save(file, np.array([{}], object), allow_pickle=True)
    elif damage != "gone":
        file.write_bytes(content)
    if damage == "manifest":
        manifest.write_text("[1]")
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "histogram":
        manifest.write_text(manifest.read_text().replace('"histogram": [', '"histogram": [0, '))
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert "is damaged" in caplog.text
    assert (splits.train.images == expected.train.images).all()
    assert splits.mean == expected.mean
    assert len(entries(root)) == 1
    caplog.clear()
    load(root, is_main=False)
    assert not caplog.text


def test_a_damaged_cache_that_cannot_be_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root)
    (root / ".quickres" / entries(root)[0] / "test.npy").unlink()
    monkeypatch.setattr("pipeline.data.files.cache.shutil.rmtree", lambda *args, **options: None)
    with pytest.raises(UserError, match=r"data\.cache_dir: .* is damaged and cannot be replaced; remove it"):
        load(root)


def test_two_processes_may_build_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, decode = threading.Barrier(2), folder.decode_files

    def decode_together(*args: Any) -> Any:
        if "train" in args[-1]:
            together.wait(timeout=PATIENCE_S)
        return decode(*args)

    monkeypatch.setattr(folder, "decode_files", decode_together)
    # the filter of warnings is global, so the threads, which represent processes, must not change it
    monkeypatch.setattr("pipeline.data.files.decode.warnings.simplefilter", lambda *args: None)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: load(root), range(2)))
    assert (both[0].train.images == both[1].train.images).all()
    assert len(entries(root)) == 1


def test_what_a_killed_process_left_is_removed(root: Path) -> None:
    left = [root / ".quickres" / name for name in ("building-old", "building-new")]
    for path in left:
        path.mkdir(parents=True)
    os.utime(left[0], (0, 0))
    load(root)
    assert [path.exists() for path in left] == [False, True]


def test_a_cache_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (root / ".quickres").write_text("in the way")
    with pytest.raises(
        UserError, match=r"data\.cache_dir: cannot write .*\.quickres/.*; set data\.cache_dir to a folder"
    ):
        load(root)
    load(root, cache_dir=str(tmp_path / "cache"))


def test_a_full_disk_is_noticed_before_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    refuse_to_decode(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"data\.cache_dir: .*No space left"):
        load(root)
    assert entries(root) == []
