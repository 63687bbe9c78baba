"""Tests finding JPEG files that are damaged inside and that decoders show nevertheless."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.files import jpeg_damage
from pipeline.data.files.decode import open_rgb
from pipeline.data.files.jpeg_damage import find_damaged_jpegs
from tests.class_folders import load
from tests.pictures import (
    bad_pictures,
    encoded,
    flip_bytes,
    make_folder,
    odd_pictures,
    picture,
    pictures_of_formats,
)


def test_damage_is_found_and_nothing_else(tmp_path: Path):
    intact = {**odd_pictures(), **pictures_of_formats(), **bad_pictures()}
    del intact["cut.jpg"]  # libjpeg tells of it too
    intact[os.fsdecode(b"caf\xe9\n.jpg")] = encoded(picture(40, 50))
    progressive = encoded(picture(80, 100), progressive=True, quality=90)
    second_scan = progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))
    damaged = {
        "0.jpg": flip_bytes(encoded(picture(80, 100), quality=90)),
        "1.png": flip_bytes(progressive[:second_scan], every=11) + progressive[second_scan:],
    }
    paths = []
    for name, content in (intact | damaged).items():
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    for name in damaged:
        open_rgb(tmp_path / name)
    found = find_damaged_jpegs([*paths, tmp_path / "nowhere.jpg", tmp_path], 2)
    assert list(found) == [len(intact), len(intact) + 1]
    assert all(text.startswith("Corrupt JPEG data: ") for text in found.values())


def test_a_worker_that_ends_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        "for name in sys.stdin.buffer.read().split(b'\\0'):\n"
        "    if name.endswith(b'1.jpg'): sys.exit(9)\n"
        "    print(flush=True)\n"
    )
    monkeypatch.setattr(jpeg_damage, "__file__", str(script))
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path in paths:
        path.write_bytes(encoded(picture(8, 8)))
    assert list(find_damaged_jpegs(paths, 1)) == [1]
    script.write_text(f"raise SystemExit({jpeg_damage._NO_DECODER})")
    assert find_damaged_jpegs(paths, 1) == {}


@pytest.mark.parametrize("keys", [{}, {"cache_below": 200}], ids=["streamed", "decoded"])
def test_training_names_the_files_at_every_start(
    tmp_path: Path, keys: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    root = make_folder(tmp_path / "root", train=2, test=1)
    (root / "val/b/0.jpg").write_bytes(flip_bytes(encoded(picture(80, 100), quality=90)))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            load(root, image_size=32, **keys)
        assert "1 of 6 JPEG files that were inspected are damaged inside" in caplog.text
        assert f"{root}/val/b/0.jpg: Corrupt JPEG data" in caplog.text and "check-data" in caplog.text
