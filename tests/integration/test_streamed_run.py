"""Tests whole runs on a streamed folder: resumed, on two processes, then evaluated, explained, exported."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import __main__ as cli
from pipeline import train
from pipeline.config import load_config
from pipeline.data import Batch, build_loaders
from pipeline.errors import UserError
from pipeline.explain.explain_model import explain_files, explain_samples
from pipeline.inference import export
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.predict_files import predict_files
from pipeline.inference.predictions import Predictions
from pipeline.inference.preprocessing import InputSpec
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.training.step import Step, StepOutput
from tests.integration import two_processes
from tests.integration.ranks import ranks
from tests.pictures import picture, save
from tests.tiny import RECIPE, assert_equal, last_weights, only_run, read_metrics

pytestmark = pytest.mark.usefixtures("process_state")
NUM_TRAIN, NUM_TEST = 32, 10
LOADERS = ["dali", "reference"]
# 4 steps per epoch; the images become larger in the middle of the second epoch
STREAMED = (
    *(
        "data.dataset=folder",
        "data.cache_below=16",
        "data.image_size=24",
        "data.eval_image_size=32",
        "data.eval_crop=0.8",
    ),
    *("augment.progressive=[[0ep, 16], [6st, 24]]", "duration=2ep", "log.tensorboard=false"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of 96x80 and 80x96 pixels in two classes."""
    root = tmp_path_factory.mktemp("images")
    for part, count in (("train", NUM_TRAIN), ("val", NUM_TEST)):
        for number in range(count):
            size = (80, 96) if number % 4 < 2 else (96, 80)
            save(
                root / part / "ab"[number % 2] / f"{number:02d}.jpg",
                picture(*size, seed=number + 100 * (part == "val")),
                quality=92,
            )
    return root


def run_streamed(root: Path, folder: Path, *overrides: str) -> int:
    keys = {item.partition("=")[0]: item for item in (f"data.root={root}", *STREAMED, *overrides)}
    return train.main([str(RECIPE), f"log.dir={folder}", *keys.values()])


@pytest.fixture(scope="module")
def runs(
    root: Path, tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None
) -> dict[str, Path]:
    """Make a whole run with each loader; the one with dali has a report."""
    folders = {loader: tmp_path_factory.mktemp(loader) for loader in LOADERS}
    for loader, folder in folders.items():
        image_keys = [f"log.{key}={'true' if loader == 'dali' else 'false'}" for key in ("report", "explain")]
        assert run_streamed(root, folder, f"data.loader={loader}", *image_keys) == 0
    return {loader: only_run(folder) for loader, folder in folders.items()}


# --- the same run: whole, resumed, and on two processes ---


@pytest.mark.parametrize(("loader", "step"), [("dali", 5), ("dali", 7), ("reference", 5)])
def test_stopped_in_mid_epoch_and_continued(
    loader: str,
    step: int,
    root: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
):
    """A run that is stopped before or after the images grow has the same bits as one that is not."""
    sizes: list[int] = []
    call = Step.__call__

    def watched(self: Step, batch: Batch) -> StepOutput:
        output = call(self, batch)
        sizes.append(batch.images.shape[-1])
        if len(sizes) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return output

    monkeypatch.setattr(Step, "__call__", watched)
    assert run_streamed(root, tmp_path, f"data.loader={loader}") == 75
    assert len(sizes) == step
    out = capsys.readouterr().out
    assert ("step 6: images of 24x24 pixels from here on\n" in out) == (step == 7)
    assert ("decoder cpu: there is no GPU\n" in out) == (loader == "dali" and not torch.cuda.is_available())
    environment = only_run(tmp_path) / "env.json"
    environment.write_text(environment.read_text().replace('"decoder": "cpu"', '"decoder": "other"'))
    assert run_streamed(root, tmp_path, f"data.loader={loader}", "resume=auto") == 0
    warned = "warning: the images are decoded by cpu now, and by other before" in capsys.readouterr().out
    assert warned == (loader == "dali" and not torch.cuda.is_available())
    assert sizes == [16] * 6 + [24] * 2
    assert_equal(last_weights(only_run(tmp_path)), last_weights(runs[loader]))
    assert read_metrics(only_run(tmp_path)) == read_metrics(runs[loader])


def test_a_run_that_is_continued_on_other_images_says_so(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """It reports renamed files and other files, and nothing if the files are the same."""
    images, call, steps = Path(shutil.copytree(root, tmp_path / "images")), Step.__call__, []

    def stopped(self: Step, batch: Batch) -> StepOutput:
        steps.append(len(batch.labels))
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return call(self, batch)

    monkeypatch.setattr(Step, "__call__", stopped)
    assert run_streamed(images, tmp_path / "runs", "duration=4ep") == 75
    warnings, renamed = [], images / "val/b/99.jpg"
    for change in (
        lambda: None,
        (images / "train/a/00.jpg").unlink,
        lambda: (images / "val/b/01.jpg").rename(renamed),
        lambda: None,
    ):
        change()
        steps.clear()
        capsys.readouterr()
        assert run_streamed(images, tmp_path / "runs", "duration=4ep", "resume=auto") == 75
        lines = capsys.readouterr().out.splitlines()
        warnings.append([line for line in lines if "the images have changed" in line])
    assert [len(lines) for lines in warnings] == [0, 1, 1, 0]
    assert "32 train and 10 test before, 31 and 10 now" in warnings[1][0]


@pytest.mark.slow
def test_two_processes_see_the_samples_of_one(root: Path, runs: dict[str, Path], tmp_path: Path):
    arguments = [
        str(RECIPE),
        f"log.dir={tmp_path}/runs",
        f"data.root={root}",
        *STREAMED,
        "data.eval_batch_size=4",
    ]
    with ranks(tmp_path, 2, two_processes.main, tmp_path, 0, arguments) as run:
        assert run.wait() == [0, 0], run.errors
    reports = [json.loads((tmp_path / f"rank-{rank}.json").read_text())["steps"] for rank in (0, 1)]
    trained = load_trained(runs["dali"])
    alone = build_loaders(trained.config, trained.splits, trained.device).train
    expected = [batch.indices.tolist() for _ in range(2) for batch in alone]
    assert [zero["indices"] + one["indices"] for zero, one in zip(*reports, strict=True)] == expected
    record = read_metrics(only_run(tmp_path / "runs"))[-1]
    assert (record["kind"], record["seen"]) == ("eval", NUM_TEST)


# --- use of the trained model ---


def probabilities(trained: Trained) -> np.ndarray:
    """Return (N, K) probabilities of the test set, by its loader."""
    return torch.from_numpy(trained.test_logits()).softmax(dim=1).numpy()


def by_file(trained: Trained, root: Path) -> np.ndarray:
    """Return (N, K) probabilities of the same images, given by name."""
    files = [root / path for path in trained.splits.test.sample_paths or ()]
    actual, bad = predict_files(trained, files, top=2)
    assert bad == [] and len(actual) == NUM_TEST
    return np.array(
        [
            [share for _, share in sorted(zip(item.classes, item.probabilities, strict=True))]
            for item in actual
        ]
    )


# The tolerance is that of a probability. The reference loader decodes and resizes with the same code as
# prediction. DALI has other code, with differences of a few grey levels.
@pytest.mark.parametrize(("loader", "tolerance"), [("reference", 1e-6), ("dali", 1e-3)])
def test_files_are_shown_as_evaluation_shows_them(
    loader: str, tolerance: float, runs: dict[str, Path], root: Path
):
    trained = load_trained(runs[loader])
    assert (trained.inputs.image_size, trained.inputs.crop, trained.inputs.resized) == (32, 0.8, 40)
    expected = probabilities(trained)
    np.testing.assert_allclose(by_file(trained, root), expected, rtol=0, atol=tolerance)
    # with the training size, or another crop, the probabilities differ
    for other in (
        replace(trained.inputs, image_size=24),
        replace(trained.inputs, crop=1.0),
        replace(trained.inputs, crop=None),
    ):
        assert np.abs(by_file(replace(trained, inputs=other), root) - expected).max() > 2 * tolerance


def test_files_are_shown_as_decoded_images_are(root: Path, tmp_path: Path):
    """The images are the same, but decoded and cached."""
    image_keys = (
        "data.cache_below=128",
        "augment.progressive=[]",
        "data.eval_image_size=null",
        "data.eval_crop=0.875",
    )
    keys = (*image_keys, "duration=1ep", f"data.cache_dir={tmp_path}/cache")
    assert run_streamed(root, tmp_path / "runs", *keys) == 0
    trained = load_trained(only_run(tmp_path / "runs"))
    assert (trained.inputs.image_size, trained.inputs.crop, trained.inputs.resized) == (24, None, 24)
    np.testing.assert_allclose(by_file(trained, root), probabilities(trained), rtol=0, atol=1e-6)


def test_the_run_says_how_images_are_shown(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    run = runs["dali"]
    monkeypatch.setattr(
        "pipeline.inference.trained_model.load_splits", lambda *_, **__: pytest.fail("reads the data set")
    )
    config = load_config(run / "config.yaml")
    assert config.data.mean is not None and config.data.std is not None
    assert InputSpec.read(run / "input.json") == InputSpec(
        ("a", "b"), config.data.mean, config.data.std, 32, 0.8
    )
    assert load_trained(run).inputs == InputSpec.read(run / "input.json")
    other = load_trained(run, overrides=["data.eval_image_size=40", "data.eval_crop=1.0"]).inputs
    assert (other.image_size, other.crop, other.resized) == (40, 1.0, 40)


def test_explain(runs: dict[str, Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trained = load_trained(runs["reference"])
    files = [root / path for path in (trained.splits.test.sample_paths or ())[:2]]
    of_files, of_samples = explain_files(trained, files), explain_samples(trained, [0, 1])
    assert of_files.images.shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(of_files.images, of_samples.images)
    np.testing.assert_array_equal(of_files.found.maps, of_samples.found.maps)
    sheet = tmp_path / "sheet.png"
    for chosen in (["--indices", "1,3"], ["--files", str(files[0])], ["--count", "2"]):
        assert cli.main(["explain", str(runs["dali"]), *chosen, "--output", str(sheet)]) == 0, (
            capsys.readouterr().err
        )
        with Image.open(sheet) as image:
            assert image.size[0] > 1000


def test_evaluate_and_report(runs: dict[str, Path], tmp_path: Path):
    run = runs["dali"]
    result = json.loads((run / "result.json").read_text())
    again = evaluate_run(run)
    assert (again.accuracy, again.seen) == (result["test_accuracy"], NUM_TEST)
    predictions = Predictions.load(run)
    assert (
        predictions is not None
        and predictions.images.shape[1:] == (32, 32, 3)
        and len(predictions.maps) == len(predictions.shown)
    )
    assert set(predictions.shown_names) <= {
        f"val/{name}/{number:02d}.jpg" for name in "ab" for number in range(NUM_TEST)
    }
    page = tmp_path / "page.html"
    assert cli.main(["report", *map(str, runs.values()), "--output", str(page)]) == 0
    assert cli.main(["report", str(run), "--refresh"]) == 0
    assert all(path.stat().st_size > 20_000 for path in (page, run / "report.html"))


def test_export_says_how_images_are_shown(runs: dict[str, Path], tmp_path: Path):
    trained = load_trained(runs["reference"])
    export.export(trained, "safetensors", tmp_path)
    about = export.describe(trained, "normalised")
    assert (about["image_size"], about["resized"]) == ("32", "40")
    assert (
        about["resize"]
        == "shorter side to 40 pixels, bilinear with antialiasing, then the central 32 x 32 pixels"
    )
    assert about["resize"] in (tmp_path / "README.md").read_text()
    assert "network(torch.zeros(1, 3, 32, 32))" in (tmp_path / "README.md").read_text()


def test_files_that_cannot_be_read_are_named(runs: dict[str, Path], root: Path, tmp_path: Path):
    (tmp_path / "text.jpg").write_text("no image")
    trained = load_trained(runs["dali"])
    predictions, bad = predict_files(trained, [tmp_path / "text.jpg", root / "val/a/00.jpg"])
    assert [item.file.name for item in predictions] == ["00.jpg"] and [path.name for path, _ in bad] == [
        "text.jpg"
    ]
    with pytest.raises(UserError, match=r"text\.jpg: not a .*PNG"):
        explain_files(trained, [tmp_path / "text.jpg"])
