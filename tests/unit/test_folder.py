"""Class folders: what is read, how it is decoded, cached, and refused."""

import errno
import io
import logging
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.config import DataConfig
from pipeline.data import folder
from pipeline.data.datasets import load_splits
from pipeline.errors import UserError

SIZE = 8


def pixels(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Classes a and b with three training and two test images each, PNG, so that pixels are exact."""
    root = tmp_path / "root"
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate("ab"):
            for number in range(count):
                save(root / part / name / f"{number}.png", pixels(100 * (part == "test") + 10 * label + number))
    return root


def load(root: Path, is_main: bool = True, **changes: object) -> Any:
    """The splits; `Any`, because what is cached has `images` and what is streamed has none."""
    values = {"dataset": "folder", "root": str(root), "image_size": SIZE, **changes}
    return load_splits(DataConfig.model_validate(values), 0, is_main=is_main)


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".quickres").iterdir() if not path.name.startswith("scan-"))


def refuse_to_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "decode_files", lambda *args: pytest.fail("decoded again"))


def test_reads_class_folders(root: Path) -> None:
    splits = load(root)
    assert splits.class_names == ("a", "b")
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.test.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.sample_paths == tuple(f"train/{name}/{number}.png" for name in "ab" for number in range(3))
    assert (splits.train.images == np.stack([pixels(seed) for seed in (0, 1, 2, 10, 11, 12)])).all()
    assert (splits.test.images == np.stack([pixels(seed) for seed in (100, 101, 110, 111)])).all()
    np.testing.assert_allclose(splits.mean, splits.train.images.mean((0, 1, 2)) / 255)
    assert splits.train.images.flags.writeable


def test_holdout_keeps_the_paths(root: Path) -> None:
    splits = load(root, holdout=2)
    assert splits.holdout is not None
    for part in (splits.train, splits.holdout):
        assert part.sample_paths is not None
        for sample, path in enumerate(part.sample_paths):
            assert (part.images[sample] == np.asarray(Image.open(root / path))).all()
    np.testing.assert_allclose(splits.std, splits.train.images.std((0, 1, 2)) / 255)


def test_nested_folders_stray_files_and_odd_names(root: Path) -> None:
    save(root / "train/b/deeper/still/9.PNG", pixels(5))
    save(root / "train/été/ß 日本.JPEG", Image.new("RGB", (SIZE, SIZE), "red"))
    raw_name = os.fsdecode(b"\xff.png")
    save(root / "train/été" / raw_name, pixels(6))
    for stray in (
        "train/a/.DS_Store",
        "train/a/Thumbs.db",
        "train/a/notes.txt",
        "train/a/._0.png",
        "train/list.csv",
        "train/.hidden/0.png",
    ):
        (root / stray).parent.mkdir(exist_ok=True)
        (root / stray).write_bytes(b"stray")
    splits = load(root)
    assert splits.class_names == ("a", "b", "été")
    assert splits.train.labels.tolist() == [0] * 3 + [1] * 4 + [2] * 2
    assert splits.train.sample_paths is not None
    assert splits.train.sample_paths[6:] == ("train/b/deeper/still/9.PNG", "train/été/ß 日本.JPEG", f"train/été/{raw_name}")
    assert (splits.train.images[6] == pixels(5)).all()


def test_links_are_followed_but_not_in_circles(root: Path) -> None:
    (root / "train/a").rename(root / "elsewhere")
    (root / "train/a").symlink_to(root / "elsewhere")
    assert len(load(root).train) == 6
    (root / "elsewhere/loop").symlink_to(root / "elsewhere")
    with pytest.raises(UserError, match=r"data\.root: the link .*/train/a/loop leads back"):
        load(root)


def test_links_to_themselves_are_named_as_other_bad_files(root: Path) -> None:
    for link in ("train/loop", "train/a/loop", "train/a/loop.png"):
        (root / link).symlink_to(Path(link).name)
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read.*\n.*/train/a/loop\.png: Too many levels of symbolic links$"):
        load(root)
    assert len(load(root, on_bad_image="skip").train) == 6


def test_images_without_classes_are_no_test_set(root: Path) -> None:
    """As in ImageNet's own `test/`."""
    (root / "test").rename(root / "val")
    save(root / "test/ILSVRC2012_test_00000001.png", pixels(5))
    assert len(load(root).test) == 4


def test_val_stands_in_for_test(root: Path) -> None:
    (root / "test").rename(root / "val")
    splits = load(root)
    assert splits.test.sample_paths is not None
    assert splits.test.sample_paths[0] == "val/a/0.png"
    save(root / "test/a/0.png", pixels(1))
    assert len(load(root).test) == 1


# The cache


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
        assert len(after) == 1  # the old one is gone
        before = after
        assert splits.test.sample_paths is not None
        for image, path in zip(splits.test.images, splits.test.sample_paths, strict=True):
            assert (image == np.asarray(Image.open(root / path))).all()
    splits = load(root)
    assert len(splits.train) == 7
    assert (splits.train.images[0] == pixels(77)).all()


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


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "pickle", "manifest", "no manifest", "half a manifest", "histogram"])
def test_a_damaged_cache_is_rebuilt(root: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(root)
    entry = root / ".quickres" / entries(root)[0]
    file, manifest = entry / "train.npy", entry / "manifest.json"
    content = file.read_bytes()
    file.unlink()  # written anew, not in place: `expected` has the old one mapped
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
        manifest.write_text(manifest.read_text().replace('"histogram": [[', '"histogram": [[0, '))
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
    monkeypatch.setattr("pipeline.data.cache.shutil.rmtree", lambda *args, **options: None)
    with pytest.raises(UserError, match=r"data\.cache_dir: .* is damaged and cannot be replaced; remove it"):
        load(root)


def test_two_processes_may_build_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, decode = threading.Barrier(2), folder.decode_files

    def decode_together(*args: Any) -> Any:
        if "train" in args[-1]:
            together.wait(timeout=10)
        return decode(*args)

    monkeypatch.setattr(folder, "decode_files", decode_together)
    # the filter of warnings belongs to the process, so threads that stand in for processes may not touch it
    monkeypatch.setattr("pipeline.data.decode.warnings.simplefilter", lambda *args: None)
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
    with pytest.raises(UserError, match=r"data\.cache_dir: cannot write .*\.quickres/.*; set data\.cache_dir to a folder"):
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


# Bad input


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
    assert lines[0] == "data.root: 6 of 16 images cannot be read; replace or remove them, or set data.on_bad_image=skip:"
    expected = ["train/a/cut.jpg", "train/a/empty.jpg", "train/b/link.png", "train/b/text.jpg", "test/a/cut.png", "test/a/gif.jpg"]
    assert [line.partition(": ")[0] for line in lines[1:]] == [f"  {root / path}" for path in expected]
    assert "not a JPEG or PNG image" in str(caught.value)
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 64 pixels: above the limit a warning, above twice the limit an error
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
        (shutil.rmtree, r"there is no folder .*/root; expected are ROOT/train/CLASS/"),
        (lambda root: shutil.rmtree(root / "train"), r"has no folder train/"),
        (lambda root: shutil.rmtree(root / "test"), r"has no folder test/ or val/"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in "ab"], r"/train holds no class folders"),
        (lambda root: [shutil.rmtree(root / "test" / name) for name in "ab"], r"/test holds no class folders"),
        (lambda root: [path.unlink() for path in root.glob("test/*/*")], r"no \.jpg, \.jpeg or \.png file in .*/test"),
        (empty_class, r"no \.jpg, \.jpeg or \.png file for class c in .*/train"),
        (lambda root: shutil.rmtree(root / "train/b"), r"/train holds one class, class a"),
        (lambda root: save(root / "test/z/0.png", pixels(0)), r"/test has class z, unknown to .*/train"),
    ],
)
def test_folders_that_are_not_as_described(root: Path, change: Any, message: str) -> None:
    change(root)
    with pytest.raises(UserError, match=r"^data\.root: .*" + message):
        load(root)


@pytest.mark.parametrize("denied", [".", "train", "train/a", "test"])
def test_a_folder_that_may_not_be_looked_into(root: Path, denied: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused here as the system refuses it: root may look into everything."""
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
def test_a_class_without_test_images_is_said(root: Path, remove_folder: bool, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(root / "test/a")
    if not remove_folder:
        (root / "test/a").mkdir()
    with caplog.at_level(logging.WARNING):
        splits = load(root)
    assert splits.test.labels.tolist() == [1, 1]
    assert splits.class_names == ("a", "b")
    assert "has no images of class a" in caplog.text
