"""What can be done with a run afterwards: explain its network, without the data set where it is not needed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import __main__ as cli
from pipeline import train
from pipeline.config import load_config
from pipeline.data import build_loaders
from pipeline.errors import UserError
from pipeline.evidence import explain_files, explain_mistakes, explain_pixels, explain_samples
from pipeline.inputs import INPUT_FILE, InputSpec
from pipeline.trained import Trained, load_trained
from tests.tiny import RECIPE, only_run

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keys = ("duration=2ep", "log.tensorboard=false", "log.report=false", "ema.decay=0.9")
    assert train.main([str(RECIPE), f"log.dir={folder}", *keys]) == 0
    return only_run(folder)


@pytest.fixture
def trained(run: Path) -> Trained:
    return load_trained(run)


@pytest.fixture
def files(trained: Trained, tmp_path: Path) -> list[Path]:
    """The first test images as PNG, of which the last is larger."""
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(paths, trained.splits.test.images, strict=False):
        Image.fromarray(pixels).save(path)
    Image.fromarray(trained.splits.test.images[2]).resize((40, 24), Image.Resampling.NEAREST).save(paths[2])
    return paths


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set is gone."""

    def gone(*_: object, **__: object) -> None:
        raise AssertionError("reads the data set")

    monkeypatch.setattr("pipeline.trained.load_splits", gone)


# --- the network ----------------------------------------------------------------------------------------------------------------


def test_the_run_says_what_its_network_takes(run: Path):
    config = load_config(run / "config.yaml")
    assert config.data.mean is not None and config.data.std is not None
    expected = InputSpec(("class 0", "class 1", "class 2", "class 3"), config.data.mean, config.data.std, 8)
    assert InputSpec.read(run / INPUT_FILE) == expected
    assert load_trained(run, overrides=["data.mean=[0.1,0.2,0.3]", "data.std=[1.0,1.0,1.0]"]).inputs.mean == (0.1, 0.2, 0.3)


def test_normalising_is_the_loader_s(trained: Trained):
    batch = next(iter(build_loaders(trained.config, trained.splits, trained.device).test))
    ours = trained.inputs.normalise(trained.splits.test.images[: len(batch.images)])
    torch.testing.assert_close(ours, batch.images.contiguous(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(trained.logits(trained.splits.test.images), trained.test_logits(), atol=1e-5)


def test_a_run_of_before_there_was_an_input_json_reads_the_data(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / INPUT_FILE).unlink()
    assert load_trained(tmp_path / "run").inputs == load_trained(run).inputs
    (tmp_path / "run" / INPUT_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"input\.json: cannot be read .*; remove it"):
        load_trained(tmp_path / "run")


def test_another_data_set_is_refused(run: Path):
    trained = load_trained(run, overrides=["data.num_classes=3"])
    with pytest.raises(UserError, match=r"classes are class 0, class 1, class 2, but the network was trained on class 0, .*class 3; give"):
        _ = trained.splits


# --- explain --------------------------------------------------------------------------------------------------------------------


def test_files_samples_and_pixels_are_explained_alike(run: Path, trained: Trained, files: list[Path], no_data: None):
    """And files without the data set."""
    of_files, of_samples = explain_files(load_trained(run), files), explain_samples(trained, [0, 1, 2])
    np.testing.assert_array_equal(of_files.images[:2], of_samples.images[:2])
    np.testing.assert_array_equal(of_files.found.maps[:2], of_samples.found.maps[:2])
    assert (of_files.sources, of_samples.sources) == (("0.png", "1.png", "2.png"), ("test 0", "test 1", "test 2"))
    assert of_files.labels is None and of_samples.labels is not None and of_samples.labels.tolist() == [0, 1, 2]
    assert (of_files.layer, of_files.images.shape) == ("stages.2", (3, 8, 8, 3))
    np.testing.assert_array_equal(explain_pixels(trained, of_files.images).found.maps, of_files.found.maps)


def test_the_class_that_is_explained(trained: Trained):
    everything = {target: explain_samples(trained, [0, 5], target=target).found for target in ("predicted", "true", "class 2", "2", 3)}
    assert everything["predicted"].classes.tolist() == everything["predicted"].predicted.tolist()
    assert everything["true"].classes.tolist() == [0, 1]
    assert everything["class 2"].classes.tolist() == everything["2"].classes.tolist() == [2, 2]
    assert everything[3].classes.tolist() == [3, 3]


def test_mistakes_come_first(trained: Trained):
    explained = explain_mistakes(trained, 100)
    assert explained.labels is not None and len(explained) == 8
    wrong = explained.labels != explained.found.predicted
    assert wrong.tolist() == sorted(wrong, reverse=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layer", "stages.4"], "layer: the network has no layer 'stages.4'; near: stages.2"),
        (["--class", "class 9"], "class: there is no class 'class 9'; near: class 3"),
        (["--class", "4"], "class: 4 is none of the indices 0 to 3"),
        (["--method", "gradcan"], "method: there is no 'gradcan', did you mean gradcam"),
        (["--method", "eigencam", "--class", "1"], "class: eigencam shows the same map for every class"),
        (["--indices", "1,8"], "indices: 8: the test set has the indices 0 to 7"),
        (["--files", "no.png"], "no.png: No such file or directory"),
        (["--files", "FILE", "--class", "true"], "class: the true classes are not known"),
        (["--indices", "1", "--output", "FOLDER/none/a.png"], "a.png: cannot be written"),
    ],
)
def test_what_cannot_be_explained_is_named(
    options: list[str], told: str, run: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = [option.replace("FILE", str(files[0])).replace("FOLDER", str(tmp_path)) for option in options]
    assert cli.main(["explain", str(run), *options]) == 2
    assert told in capsys.readouterr().err


def test_explain_from_the_command_line(run: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = [*("--files", str(files[0]), str(files[2])), *("--layer", "stages.1"), *("--class", "class 2"), *("--method", "layercam")]
    sheet = tmp_path / "sheet.png"
    assert cli.main(["explain", str(run), *chosen, "--output", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1500
    assert cli.main(["explain", str(run), "--indices", "3,1", "--output", str(sheet), "data.loader=reference"]) == 0
