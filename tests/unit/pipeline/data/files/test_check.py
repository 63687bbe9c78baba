"""Checks the tables that `check-data` writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import __main__ as cli
from pipeline.config import FolderData
from pipeline.data.files import check
from pipeline.data.files.list_files import list_files
from tests.pictures import make_folder


@pytest.mark.parametrize(
    ("name", "cell"),
    [("=cmd|calc!A1", "'=cmd|calc!A1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), ("cat", "cat")],
)
def test_a_class_that_looks_like_a_formula(name: str, cell: str):
    assert check._cell(name) == cell


def test_ctrl_c_leaves_what_was_found_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        folder = tmp_path / part / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (4, 4), (number, 9, 9)).save(folder / f"{number}.png")
    bad = tmp_path / "train" / "a" / "1.png"
    bad.write_bytes(b"no image")
    decode = check.open_rgb

    def stop_at_the_test_images(file: Any) -> Image.Image:
        if "test" in Path(file).parts:
            raise KeyboardInterrupt
        return decode(file)

    monkeypatch.setattr(check, "open_rgb", stop_at_the_test_images)
    assert cli.main(["check-data", str(tmp_path), "--threads", "1"]) == 130
    first, second = capsys.readouterr().out.splitlines()
    assert first == "stopped after 6 of 12 files; 1 of these are bad"
    assert str(bad) in second


def test_images_without_a_label_are_not_counted_as_read(tmp_path: Path):
    root = make_folder(tmp_path, train=3, test=1)
    listing = replace(list_files(FolderData(root=str(root))), without_label={"train": ["x", "y"]})
    sizes = {part: np.zeros((len(files), 2), np.int32) for part, files in listing.parts.items()}
    sizes["train"][0] = 4
    (line,) = check._describe_part(listing, sizes, {"train": {}})
    assert line == f"stopped after 1 of {len(listing)} files; 0 of these are bad; 2 others have no label"
