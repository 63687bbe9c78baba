"""Tests `check-data` on a folder with odd and bad files."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.config import FolderData
from pipeline.data.datasets.load import load_splits
from pipeline.data.files.check import Checked, write_report
from pipeline.data.files.image_formats import NO_IMAGE
from pipeline.data.files.list_files import list_files
from pipeline.errors import UserError
from tests.pictures import bad_pictures, encoded, flip_bytes, make_folder, odd_pictures, picture, save


def test_what_is_wrong_is_listed_and_the_rest_is_counted_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = make_folder(tmp_path / "root")
    for name, content in odd_pictures().items():
        (root / "train/b" / name).write_bytes(content)
    out = tmp_path / "out"
    assert main(["check-data", str(root), "--threads", "2", "--out", str(out)]) == 0
    assert (out / "bad_images.txt").read_text() == ""
    for name, content in bad_pictures().items():
        (root / "train/a" / name).write_bytes(content)
    (root / "val/b/0.jpg").write_bytes((root / "val/b/0.jpg").read_bytes()[:-300])
    assert main(["check-data", str(root)]) == 1
    output, out = capsys.readouterr().out, root / ".quickres/check"
    assert (
        f"5 of {21 + 15} files are bad" in output
        and "train: 26 images, 6 to 20 in each of 2 classes" in output
    )
    bad = [line.split("\t") for line in (out / "bad_images.txt").read_text().splitlines()]
    assert [path for path, _ in bad] == [str(root / "train/a" / name) for name in sorted(bad_pictures())] + [
        str(root / "val/b/0.jpg")
    ]
    assert all(reason for _, reason in bad)
    assert (out / "class_counts.csv").read_text() == "class,train,test\na,6,3\nb,20,2\n"
    with Image.open(out / "image_sizes.png") as picture:
        assert picture.size == (1200, 560)


def test_equal_sizes_and_classes_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "root"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (40, 32)).save(root / name / "0.png")
    assert main(["check-data", str(root), "--threads", "1"]) == 0
    output = capsys.readouterr().out
    assert "train: 2 images, 1 in each of 2 classes\n" in output and "\nwidth x height: 40x32\n" in output


def test_any_class_name_is_one_field_of_the_table(tmp_path: Path):
    root, name = make_folder(tmp_path / "root", train=2, test=1), '12" disc, black'
    for part in ("train", "val"):
        (root / part / "a").rename(root / part / name)
    listing = list_files(FolderData(root=str(root)))
    sizes = {part: np.ones((len(files), 2), np.int32) for part, files in listing.parts.items()}
    with write_report(Checked(listing, sizes, []), tmp_path)[1].open(newline="") as file:
        assert list(csv.reader(file)) == [["class", "train", "test"], [name, "2", "1"], ["b", "2", "1"]]


def test_a_bad_file_of_any_name_is_one_line(tmp_path: Path):
    root = make_folder(tmp_path / "root", train=1, test=1)
    (root / "train/a/two\nlines\t\x1b[31m.jpg").write_text("text")
    assert main(["check-data", str(root), "--out", str(tmp_path)]) == 1
    path = rf"{root}/train/a/two\nlines\t\x1b[31m.jpg"
    assert (tmp_path / "bad_images.txt").read_text() == f"{path}\t{NO_IMAGE}\n"
    with pytest.raises(UserError) as caught:
        load_splits(FolderData(root=str(root)), 0)
    assert str(caught.value).splitlines()[1:] == [f"  {path}: {NO_IMAGE}"]


def test_everything_that_is_wrong_is_listed_in_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root, whole = make_folder(tmp_path / "root", train=2, test=1), encoded(picture(80, 100), quality=90)
    (root / "train/empty").mkdir()
    (root / "train/a/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/b/text.jpg").write_text("this is text")
    (root / "train/b/flipped.jpg").write_bytes(flip_bytes(whole))
    (root / "train/b/copy.jpg").write_bytes((root / "train/a/0.jpg").read_bytes())
    (root / "train/b/nothing.jpg").touch()
    save(root / "val/unknown/0.jpg", picture(40, 40))
    (names := tmp_path / "names.txt").write_text("a one\nb two\na three\nempty nothing\n")
    (root / "train/b/moving.gif").write_bytes(b"GIF89a")
    keys = (f"data.class_names={names}", "--out", str(tmp_path / "out"))
    assert main(["check-data", str(root), *keys]) == 1
    output = capsys.readouterr().out
    assert "4 of 11 files are bad" in output
    for told in (
        *(
            "train/a/cut.jpg: ",
            "train/b/text.jpg: not a ",
            "train/b/nothing.jpg: the file is empty",
            f"error: data.class_names: {names}:3: a second name for class a",
            "train/b/flipped.jpg: damaged inside: Corrupt JPEG",
        ),
        "error: data.root: no JPEG, PNG, WebP, BMP, TIFF or PNM file for class empty in",
        "error: data.root: {root}/val has class unknown, unknown to {root}/train",
        "warning: data.root: 1 train file stands under several labels: train/a/0.jpg",
        "warning: data.root: left out in {root}: 1 .gif",
    ):
        assert told.replace("{root}", str(root)) in output
    assert (tmp_path / "out/class_counts.csv").read_text().splitlines()[1:] == ["a,2,1", "b,3,1", "empty,0,0"]


def test_a_missing_test_folder_does_not_hide_bad_training_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    root = make_folder(tmp_path / "root", train=2, test=1)
    (root / "val").rename(root / "valid")
    (root / "train/a/text.jpg").write_text("this is text")
    assert main(["check-data", str(root)]) == 1
    output = capsys.readouterr().out
    assert "text.jpg: not a" in output and "data.test_folder=valid" in output
    (root / "train/a/text.jpg").unlink()
    assert main(["check-data", str(root), "data.test_folder=valid"]) == 0


def test_lists_are_checked_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root, train = make_folder(tmp_path / "root", train=1, test=1), tmp_path / "train.txt"
    train.write_text("train/a/0.jpg a\ntrain/b/0.jpg b\nb/0.jpg b\n")
    assert main(["check-data", str(root), f"data.train_list={train}", f"data.test_list={train}"]) == 1
    output = capsys.readouterr().out
    assert f"b/0.jpg: No such file or directory (line 3 of {train})" in output
    assert "absolute or from data.root=" in output and "2 of 3 test files are training files" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere"], "data.root: there is no folder"),
        (["{root}", "--out", "{root}/val/a/0.jpg"], "--out: cannot write"),
        (["{root}", "data.train_list=x"], "data.train_list and data.test_list: give both or neither"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = make_folder(tmp_path / "root", train=1, test=1)
    assert main(["check-data", *(argument.replace("{root}", str(root)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
