"""Tests that the test images of a folder are read alone, for a network that has been trained."""

import atexit
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import FolderData
from pipeline.data import FileSet, ImageSet
from pipeline.data.datasets.load import load_test
from pipeline.errors import UserError
from tests.class_folders import SIZE, load, pixels, save


def read(root: Path, names: tuple[str, ...] = ("a", "b"), streamed: bool = False, **changes: Any) -> Any:
    config = FolderData.model_validate({"root": str(root), "image_size": SIZE, **changes})
    return load_test(config, 0, names, streamed=streamed)


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines))
    return str(path)


def break_training_images(root: Path) -> None:
    for path in (root / "train").rglob("*.png"):
        path.write_text("no image")


def add_a_class(root: Path) -> None:
    save(root / "train/c/0.png", pixels(1))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "change", [lambda root: shutil.rmtree(root / "train"), break_training_images, add_a_class]
)
def test_the_training_images_do_not_matter(root: Path, change: Any, streamed: bool):
    expected = load(root, cache_below=1 if streamed else 64).test
    change(root)
    test = read(root, streamed=streamed)
    assert type(test) is type(expected) is (FileSet if streamed else ImageSet)
    assert list(test.sample_paths) == list(expected.sample_paths)
    assert test.labels.tolist() == expected.labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(test.pixels(np.arange(4)), expected.pixels(np.arange(4)))


def test_large_images_are_decoded_for_a_network_that_was_trained_on_decoded_ones(root: Path):
    save(root / "test/a/0.png", pixels(1, 200, 300))
    assert read(root).images.shape == (4, SIZE, SIZE, 3)


def test_the_cache_of_all_images_stays(root: Path):
    load(root)
    before = {path.name for path in (root / ".quickres").iterdir()}
    read(root)
    read(root, streamed=True)
    after = {path.name for path in (root / ".quickres").iterdir()}
    assert before < after and all(name.startswith("test-") for name in after - before)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_folder_that_cannot_be_written(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, streamed: bool
):
    """The test simulates it, because root may write everywhere."""
    transparent = Image.fromarray(pixels(5)).convert("RGBA")
    transparent.putalpha(100)
    save(root / "test/a/0.png", transparent)
    expected, added = read(root, streamed=streamed).pixels(np.arange(4)), []
    shutil.rmtree(root / ".quickres")
    monkeypatch.setattr(os, "access", lambda path, mode: not root.is_relative_to(path) and path != root)
    monkeypatch.setattr(atexit, "register", lambda act, path, **_: added.append(path))
    test = read(root, streamed=streamed)
    np.testing.assert_array_equal(test.pixels(np.arange(4)), expected)
    assert f"data.cache_dir: {root}/.quickres cannot be written" in caplog.text
    assert sorted(path.name for path in root.iterdir()) == ["test", "train"]
    (folder,) = added
    shutil.rmtree(folder)


def test_a_class_without_test_images(root: Path, caplog: pytest.LogCaptureFixture):
    shutil.rmtree(root / "test/a")
    assert read(root, ("x", "b", "a")).labels.tolist() == [1, 1]
    assert "classes x, a" in caplog.text


def test_a_class_that_the_network_does_not_know(root: Path):
    (root / "test/empty").mkdir()
    assert len(read(root)) == 4
    with pytest.raises(UserError, match=r"data\.root: .* of class b, .* trained on classes a, c; give"):
        read(root, ("a", "c"))


def test_names_are_given_to_classes(root: Path, tmp_path: Path):
    names = write(tmp_path / "names.txt", "b bee", "a apple", "c bee")
    assert read(root, ("bee", "apple"), class_names=names).labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(UserError, match=r"data\.root: class b: .*empty folder"):
        read(root, ("apple", "bee", "bee"), class_names=names)
    (root / "test/c").mkdir()
    assert read(root, ("apple", "bee", "bee"), class_names=names).labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        (("b", "a"), ("a", "b"), [1, 0]),
        (("b", "b"), ("a", "b"), [1, 1]),
        (("010", "2"), tuple(map(str, range(11))), [10, 2]),
        (("1", "0"), ("0", "1"), [1, 0]),
    ],
)
def test_a_list_of_test_images(
    root: Path, tmp_path: Path, labels: tuple[str, ...], class_names: tuple[str, ...], expected: list[int]
):
    lines = [f"test/a/{number}.png {label}" for number, label in enumerate(labels)]
    lists: Any = {"train_list": str(tmp_path / "none.txt"), "test_list": write(tmp_path / "test.txt", *lines)}
    test = read(root, class_names, **lists)
    assert test.labels.tolist() == expected and list(test.sample_paths) == ["test/a/0.png", "test/a/1.png"]


def test_a_list_with_another_class(root: Path, tmp_path: Path):
    lists: Any = {"train_list": "none", "test_list": write(tmp_path / "test.txt", "test/a/0.png 7")}
    with pytest.raises(UserError, match=r"data\.test_list: .* of class 7, .* trained on classes a, b"):
        read(root, **lists)


def nothing(root: Path) -> None:
    shutil.rmtree(root)


def no_test_images(root: Path) -> None:
    for path in (root / "test").rglob("*.png"):
        path.unlink()


def break_a_test_image(root: Path) -> None:
    (root / "test/b/1.png").write_text("no image")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, "data.root: there is no folder"),
        (lambda root: shutil.rmtree(root / "test"), "data.root: .* test/ or val/"),
        (no_test_images, "data.root: no .* file in"),
        (break_a_test_image, "data.root: 1 of 4 images cannot be read.*data.on_bad_image=skip:\n.*b/1.png"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_test_images_are_named(root: Path, change: Any, message: str, streamed: bool):
    change(root)
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        read(root, streamed=streamed)


@pytest.mark.parametrize("streamed", [False, True])
def test_bad_test_images_are_left_out(root: Path, streamed: bool, caplog: pytest.LogCaptureFixture):
    break_a_test_image(root)
    assert read(root, streamed=streamed, on_bad_image="skip").labels.tolist() == [0, 0, 1]
    assert "1 of 4 images cannot be read and are left out" in caplog.text
