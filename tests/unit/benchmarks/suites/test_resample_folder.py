"""Tests `make-folder --from`: class folders made anew in sizes as ImageNet's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.publish.about_folder import AboutFolder, name_of_images
from benchmarks.suites.resample_folder import Look, resample
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.pictures import bad_pictures, make_folder


def made(folder: Path, origin: Path, *options: str) -> int:
    return main(["make-folder", str(folder), "--from", str(origin), "--threads", "2", *options])


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def test_sizes_resemble_those_of_imagenet():
    sizes = np.array([Look.draw(np.random.Generator(np.random.Philox(seed))).size for seed in range(2000)])
    width, height = sizes.T
    assert tuple(np.median(sizes, axis=0)) == (500, 375)
    long_side = sizes.max(axis=1)
    assert 0.68 < (long_side == 500).mean() < 0.76 and long_side.max() > 1200 and long_side.min() < 250
    assert 0.2 < (height > width).mean() < 0.28


def test_an_image_is_cut_to_the_shape_and_not_stretched():
    image = Image.new("RGB", (90, 90))
    image.paste((255, 255, 255), (0, 0, 90, 45))  # the upper half
    tall, wide = (resample(image, size, np.random.default_rng(0)) for size in ((40, 80), (80, 40)))
    assert (tall.size, wide.size) == ((40, 80), (80, 40))
    for result in (tall, wide):
        rows = np.asarray(result).mean(axis=(1, 2))
        assert rows[: len(rows) // 2 - 2].min() > 200 and rows[len(rows) // 2 + 2 :].max() < 60


def test_every_image_is_made_and_the_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    origin = make_folder(tmp_path / "origin", train=3, test=2)
    folders = [tmp_path / name for name in ("one", "two", "three")]
    for folder, seed in zip(folders, ("5", "5", "6"), strict=True):
        assert made(folder, origin, "--sizes", "imagenet", "--seed", seed) == 0
    one, two, three = map(files_of, folders)
    assert one == two and one != three
    assert len(one) == 2 * (3 + 2) and "train/b/0000005.jpg" in one and "val/a/0000000.jpg" in one
    about = AboutFolder.of(folders[0])
    assert about is not None and about.images == {"train": 6, "val": 4} and "--seed 5" in str(about.made_by)
    assert about.name in capsys.readouterr().out and about.name.startswith("origin resampled")
    assert about.mean_bytes == round(np.mean([len(content) for content in one.values()]))
    config = load_config(overrides=["data.dataset=folder", f"data.root={folders[0]}"])
    assert name_of_images(config) == about.name
    assert name_of_images(load_config(overrides=["data.dataset=folder", f"data.root={origin}"])) is None


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    origin = make_folder(tmp_path / "origin", train=1, test=1)
    assert made(origin, origin) == 2
    assert "--from: " in capsys.readouterr().err
    assert made(tmp_path / "one", tmp_path / "nowhere") == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        made(tmp_path / "one", origin, "--images", "5")
    assert "--images: is for mosaics" in capsys.readouterr().err
    for option, value in (("--seed", "0"), ("--sizes", "imagenet")):
        with pytest.raises(SystemExit):
            main(["make-folder", str(tmp_path / "one"), option, value])
        assert f"{option}: has no effect on mosaics" in capsys.readouterr().err
    copied = make_folder(tmp_path / "copied", train=1, test=1)
    kept = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert made(copied, origin) == 2
    assert "train: is not empty" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    (origin / "train/a/bad.jpg").write_bytes(bad_pictures()["cut.jpg"])
    assert made(tmp_path / "one", origin) == 2
    assert "bad.jpg: " in capsys.readouterr().err


def test_a_long_name_is_cut(tmp_path: Path):
    assert made(tmp_path / "made", make_folder(tmp_path / ("long" * 20), train=1, test=1)) == 0
    about = AboutFolder.of(tmp_path / "made")
    assert about is not None and len(about.name) == 80
    assert about.name.startswith("longlong") and about.name.endswith("lo resampled to ImageNet's sizes")


def test_a_damaged_about_file_is_named(tmp_path: Path):
    (tmp_path / "about.json").write_text(json.dumps({"name": ""}))
    with pytest.raises(UserError, match=r"about\.json: .*name.*remove the file"):
        AboutFolder.of(tmp_path)
