"""Files that change, or that are damaged, during a run of a streamed folder are named."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.data.datasets.file_set import FileSet
from pipeline.errors import TrainingError
from tests.parity.streamed import loaders
from tests.pictures import damaged_inside, make_folder, picture, save


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_a_file_that_changes_during_the_run_is_named(tmp_path: Path, loader: str):
    root = make_folder(tmp_path / "root")
    built = loaders(root, "data.batch_size=4", f"data.loader={loader}")
    for part, batches in (("train", built.train), ("val", built.test)):
        victim = root / part / "a/1.jpg"
        victim.write_bytes(victim.read_bytes()[:300])
        with pytest.raises(TrainingError, match=rf"(.*\n)*.*{victim}: (?i:.*truncated)"):
            list(batches)


@pytest.mark.parametrize("size", [(9, 8), (200, 300)], ids=["smaller", "larger"])
@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_a_file_that_is_replaced_by_another_size_is_named(tmp_path: Path, loader: str, size: tuple[int, int]):
    root = make_folder(tmp_path / "root")
    built = loaders(root, "data.batch_size=4", f"data.loader={loader}")
    for part, batches in (("train", built.train), ("val", built.test)):
        victim = root / part / "a/1.jpg"
        with Image.open(victim) as image:
            width, height = image.size
        save(victim, picture(*size))
        found = rf"  {victim}: {size[1]}x{size[0]} pixels, and no longer {width}x{height}"
        with pytest.raises(TrainingError, match=rf"since the run began(.*\n)+{found}"):
            list(batches)


@pytest.mark.parametrize("loader", ["dali", "reference"])
def test_a_file_that_was_damaged_before_the_run_is_named(tmp_path: Path, loader: str):
    """Header and end are intact, so the scan does not find the damage; no file has changed."""
    root = make_folder(tmp_path / "root")
    victim = root / "train/a/1.png"
    victim.write_bytes(damaged_inside())
    train = loaders(root, "data.batch_size=6", f"data.loader={loader}").train
    remedy = r"images are damaged, or .*data\.on_bad_image=skip"
    with pytest.raises(TrainingError, match=rf"{remedy}(.*\n)+  {victim}: "):
        list(train)  # 12 of the 13 images: the victim is one of them


def test_a_file_that_only_dali_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow can decode some damaged files that stop DALI's pipeline. In this test it finds no damage."""
    root = make_folder(tmp_path / "root")
    train = loaders(root, "data.batch_size=4").train
    victim = root / "train/a/1.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    monkeypatch.setattr(FileSet, "decode", lambda *_: None)
    with pytest.raises(
        TrainingError, match=rf"are damaged[^\n]*\n  {victim}: Pillow can decode it, DALI cannot$"
    ):
        list(train)
