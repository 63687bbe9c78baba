"""Tests that a trained network is evaluated and explained on data of other sizes, without training images."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import __main__ as cli
from pipeline import train
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.trained_model import load_trained
from tests.pictures import make_folder
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("images"), train=6, test=5)


@pytest.fixture(scope="module", params=["decoded", "streamed"])
def run(
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    process_state_of_module: None,
) -> Path:
    """Make a run on decoded or on streamed images, with a part held out."""
    runs, below = tmp_path_factory.mktemp("runs"), {"decoded": 200, "streamed": 64}[request.param]
    keys = ("data.dataset=folder", f"data.root={root}", "data.image_size=24", f"data.cache_below={below}")
    more = ("data.mean=null", "data.std=null", "data.holdout=2", "duration=1ep", "log.tensorboard=false")
    assert train.main([str(RECIPE), f"log.dir={runs}", *keys, *more]) == 0
    return only_run(runs)


def test_the_training_images_are_not_needed(run: Path, root: Path, tmp_path: Path):
    expected, trained = evaluate_run(run), load_trained(run)
    assert expected.seen == 10
    shutil.copytree(root / "val", tmp_path / "alone/test")
    shutil.copytree(root, tmp_path / "few")
    for path in (tmp_path / "few/train").rglob("[1-9].jpg"):
        path.unlink()  # one image of each class is left, fewer than a batch
    for name in ("alone", "few"):
        keys = [f"data.root={tmp_path / name}"]
        assert evaluate_run(run, overrides=keys) == expected
        other = load_trained(run, overrides=keys)
        np.testing.assert_array_equal(other.test_logits(), trained.test_logits())


def test_commands_on_test_images_alone(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(root / "val/b", tmp_path / "alone/val/b")
    keys, sheet = [f"data.root={tmp_path}/alone", "data.loader=reference"], tmp_path / "sheet.png"
    assert cli.main(["evaluate", str(run), *keys]) == 0
    assert "/5), loss" in capsys.readouterr().out
    assert cli.main(["explain", str(run), *keys, "--count", "2", "--output", str(sheet)]) == 0
    assert sheet.is_file()
    (tmp_path / "alone/val/b").rename(tmp_path / "alone/val/c")
    assert cli.main(["evaluate", str(run), *keys]) == 2
    assert "data.root: the test images are of class c" in capsys.readouterr().err


def test_keys_of_training_do_not_matter(run: Path):
    """A batch larger than the data set, and augmentation that the loader does not have."""
    keys = ["data.batch_size=4096", "augment.color_jitter=0.5", "data.loader=reference"]
    assert evaluate_run(run, overrides=keys).seen == 10
