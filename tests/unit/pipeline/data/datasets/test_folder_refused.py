"""Tests class folders that are refused, or not as described."""

import errno
import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from pipeline.data.files.image_formats import NO_IMAGE
from pipeline.errors import UserError
from tests.class_folders import entries, load, pixels, save


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def test_bad_images_are_listed_together(root: Path) -> None:
    whole = jpeg(Image.fromarray(pixels(0, 64, 64)))
    bad = {
        "train/a/cut.jpg": whole[: len(whole) // 2],
        "train/a/empty.jpg": b"",
        "train/b/text.jpg": b"this is text",
        "test/a/cut.png": (root / "test/a/0.png").read_bytes()[:-40],
        "test/a/gif.jpg": b"GIF89a" + bytes(40),
    }
    for path, content in bad.items():
        (root / path).write_bytes(content)
    (root / "train/b/link.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError) as caught:
        load(root)
    lines = str(caught.value).splitlines()
    assert (
        lines[0]
        == "data.root: 6 of 16 images cannot be read; replace or remove them, or set data.on_bad_image=skip:"
    )
    expected = [
        "train/a/cut.jpg",
        "train/a/empty.jpg",
        "train/b/link.png",
        "train/b/text.jpg",
        "test/a/cut.png",
        "test/a/gif.jpg",
    ]
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"  {root / path}" for path in expected]
    assert NO_IMAGE in str(caught.value)
    assert entries(root) == []
    for path in expected:
        (root / path).unlink()
    assert len(load(root).train) == 6


def test_at_most_ten_bad_images_are_named(root: Path) -> None:
    for number in range(13):
        (root / f"train/a/bad{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"13 of 23 images(.*\n){11}  and 3 more$"):
        load(root)


@pytest.mark.parametrize("limit", [40, 20])
def test_decompression_bombs_are_named(root: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    # 64 pixels: above the limit a warning, above twice the limit an error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"10 of 10 images cannot be read(.*\n)+.*exceeds limit of"):
        load(root)


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "train/a/pipe.jpg")
    with pytest.raises(UserError, match=r"1 of 11 images(.*\n)+.*pipe\.jpg"):
        load(root)


def test_a_png_that_pillow_refuses(root: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    save(root / "train/a/comment.png", pixels(1), pnginfo=info)
    with pytest.raises(UserError, match=r"1 of 11 images(.*\n)+.*comment\.png: .+"):
        load(root)


def empty_class(root: Path) -> None:
    (root / "train/c").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"there is no folder .*/root; expected: ROOT/train/CLASS/"),
        (lambda root: shutil.rmtree(root / "train"), r"has no folder train/"),
        (lambda root: shutil.rmtree(root / "test"), r"has no folder test/ or val/"),
        (
            lambda root: [shutil.rmtree(root / "train" / name) for name in "ab"],
            r"/train holds no class folders",
        ),
        (
            lambda root: [shutil.rmtree(root / "test" / name) for name in "ab"],
            r"/test holds no class folders",
        ),
        (
            lambda root: [path.unlink() for path in root.glob("test/*/*")],
            r"no .*PNM file in .*/test",
        ),
        (empty_class, r"no .*PNM file for class c in .*/train"),
        (lambda root: shutil.rmtree(root / "train/b"), r"/train holds one class, class a"),
        (lambda root: save(root / "test/z/0.png", pixels(0)), r"/test has class z, unknown to .*/train"),
    ],
)
def test_folders_that_are_not_as_described(root: Path, change: Any, message: str) -> None:
    change(root)
    with pytest.raises(UserError, match=r"^data\.root: .*" + message):
        load(root)


@pytest.mark.parametrize("denied", [".", "train", "train/a", "test"])
def test_a_folder_that_may_not_be_looked_into(
    root: Path, denied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test raises the system's error itself, because root may read every folder."""
    hidden, scandir = str(root / denied), os.scandir

    def refusing(call: Any) -> Any:
        def refuse(path: Any, *rest: Any, **more: Any) -> Any:
            if str(path).startswith(f"{hidden}/") or (call is scandir and str(path) == hidden):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *rest, **more)

        return refuse

    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with pytest.raises(UserError, match=rf"data\.root: cannot list {hidden}.* \(Permission denied\)"):
        load(root)


@pytest.mark.parametrize("remove_folder", [True, False])
def test_a_class_without_test_images_is_said(
    root: Path, remove_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(root / "test/a")
    if not remove_folder:
        (root / "test/a").mkdir()
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert splits.test.labels.tolist() == [1, 1]
    assert splits.class_names == ("a", "b")
    assert "has no images of class a" in caplog.text
