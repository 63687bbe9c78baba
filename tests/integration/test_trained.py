"""Explains, predicts with and exports the network of a run, without the data set where it is not needed."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipeline import __main__ as cli
from pipeline.config import load_config
from pipeline.data import build_loaders
from pipeline.data.files.image_formats import FORMAT_NAMES, NO_IMAGE
from pipeline.errors import UserError
from pipeline.explain.explain_model import explain_files, explain_mistakes, explain_pixels, explain_samples
from pipeline.explain.explain_run import explain_run
from pipeline.inference.predict_files import predict_files
from pipeline.inference.preprocessing import InputSpec
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.training.build import set_backends
from tests.tiny import last_ema


def images_of(trained: Trained) -> np.ndarray:
    """(N, H, W, 3) uint8, the test images."""
    return trained.splits.test.pixels(np.arange(len(trained.splits.test)))


@pytest.fixture
def files(trained: Trained, tmp_path: Path) -> list[Path]:
    """The first test images as PNG, of which the last is larger."""
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(paths, images_of(trained), strict=False):
        Image.fromarray(pixels).save(path)
    Image.fromarray(images_of(trained)[2]).resize((40, 24), Image.Resampling.NEAREST).save(paths[2])
    return paths


# --- the network --------------------------------------------------------------------------------------------


def test_the_run_says_what_its_network_takes(run: Path):
    config = load_config(run / "config.yaml")
    assert config.data.mean is not None and config.data.std is not None
    expected = InputSpec(("class 0", "class 1", "class 2", "class 3"), config.data.mean, config.data.std, 8)
    assert InputSpec.read(run / "input.json") == expected
    assert load_trained(run, overrides=["data.mean=[0.1,0.2,0.3]", "data.std=[1.0,1.0,1.0]"]).inputs.mean == (
        0.1,
        0.2,
        0.3,
    )


@pytest.mark.usefixtures("process_state")
def test_cudnn_times_no_algorithms_for_a_loaded_network(run: Path):
    """For a pass or two it would take longer than they do."""
    config = load_config(run / "config.yaml", ["runtime.deterministic=false", "runtime.cudnn_benchmark=true"])
    set_backends(config)
    assert torch.backends.cudnn.benchmark
    load_trained(run, overrides=["runtime.deterministic=false", "runtime.cudnn_benchmark=true"])
    assert not torch.backends.cudnn.benchmark


def test_normalising_is_the_loader_s(trained: Trained):
    batch = next(iter(build_loaders(trained.config, trained.splits, trained.device).test))
    ours = trained.inputs.normalise(images_of(trained)[: len(batch.images)])
    torch.testing.assert_close(ours, batch.images.contiguous(), rtol=0, atol=1e-6)
    np.testing.assert_allclose(trained.logits(images_of(trained)), trained.test_logits(), atol=1e-5)


def test_a_run_of_before_there_was_an_input_json_reads_the_data(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "input.json").unlink()
    assert load_trained(tmp_path / "run").inputs == load_trained(run).inputs
    (tmp_path / "run" / "input.json").write_text("{}")
    with pytest.raises(UserError, match=r"input\.json: .* class_names, .*; remove it"):
        load_trained(tmp_path / "run")


def test_another_data_set_is_refused(run: Path):
    trained = load_trained(run, overrides=["data.num_classes=3"])
    with pytest.raises(
        UserError,
        match=r"^data\.root: .*class 2, .* trained on class 0, .*class 3; give the data set",
    ):
        _ = trained.splits


def test_another_network_is_refused(run: Path):
    with pytest.raises(
        UserError,
        match=r"another network than resnet32 .*; leave out the model keys that you gave",
    ):
        load_trained(run, overrides=["model.name=resnet32"])


def test_the_moving_average_predicts_and_is_exported(
    run: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    average = load_trained(run, ema=True)
    expected = last_ema(run)
    assert all(torch.equal(value, expected[key]) for key, value in average.model.state_dict().items())
    image = str(tmp_path / "0.png")
    Image.fromarray(images_of(trained)[0]).save(image)
    assert cli.main(["predict", str(run), image, "--json", "--ema"]) == 0
    shares = torch.from_numpy(average.logits(images_of(trained)[:1])).softmax(1)
    printed = json.loads(capsys.readouterr().out)
    (prediction,) = printed["predictions"]
    assert prediction["top"][0]["probability"] == pytest.approx(shares.max().item(), rel=1e-5)
    assert printed["ema"] is True
    assert cli.main(["export", str(run), "--format", "safetensors", "--ema", "--output", str(tmp_path)]) == 0
    exported = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in exported.items())
    origin = f"of the run {run.name}, moving average of its weights."
    assert origin in (tmp_path / "README.md").read_text()


def test_the_moving_average_is_explained(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []
    monkeypatch.setattr(
        "pipeline.explain.explain_run.draw_contact_sheet",
        lambda path, explained, title, subtitle: drawn.append(subtitle),
    )
    explain_run(run, indices=[1], ema=True, output=tmp_path / "sheet.png")
    assert drawn == ["resnet20 on synthetic, step 10, moving average of the weights; Grad-CAM of stages.2"]


def test_a_checkpoint_without_a_moving_average_is_named(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (checkpoint / "ema.safetensors").unlink()
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        del manifest["sha256"]["ema.safetensors"]
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"no moving average .*; train with ema"):
        load_trained(tmp_path / "run", ema=True)


# --- explain ------------------------------------------------------------------------------------------------


def test_files_of_one_name_are_told_apart_by_their_folders(
    trained: Trained, files: list[Path], tmp_path: Path, no_data: None
):
    copies = [tmp_path / name for name in ("cat/0.png", "dog/0.png", "1.png")]
    for copy in copies:
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(files[0].read_bytes())
    assert explain_files(trained, copies).sources == ("cat/0.png", "dog/0.png", "1.png")


def test_files_samples_and_pixels_are_explained_alike(
    run: Path, trained: Trained, files: list[Path], no_data: None
):
    """And files without the data set."""
    of_files, of_samples = explain_files(load_trained(run), files), explain_samples(trained, [0, 1, 2])
    np.testing.assert_array_equal(of_files.images[:2], of_samples.images[:2])
    np.testing.assert_array_equal(of_files.found.maps[:2], of_samples.found.maps[:2])
    assert (of_files.sources, of_samples.sources) == (
        ("0.png", "1.png", "2.png"),
        ("test 0", "test 1", "test 2"),
    )
    assert (
        of_files.labels is None and of_samples.labels is not None and of_samples.labels.tolist() == [0, 1, 2]
    )
    assert (of_files.layer, of_files.images.shape) == ("stages.2", (3, 8, 8, 3))
    np.testing.assert_array_equal(explain_pixels(trained, of_files.images).found.maps, of_files.found.maps)


def test_the_class_that_is_explained(trained: Trained):
    everything = {
        target: explain_samples(trained, [0, 5], target=target).found
        for target in ("predicted", "true", "class 2", "2", 3)
    }
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
    ("options", "message"),
    [
        (["--layer", "stages.4"], "layer: the network has no layer 'stages.4'; near: stages.2"),
        (["--class", "class 9"], "class: there is no class 'class 9'; near: class 3"),
        (["--class", "4"], "class: 4 is none of the indices 0 to 3"),
        (["--method", "gradcan"], "method: there is no 'gradcan', did you mean gradcam"),
        (["--method", "eigencam", "--class", "1"], "class: eigencam shows the same map for every class"),
        (["--indices", "1,8"], "indices: 8: the test set has the indices 0 to 7"),
        (["--files", "no.png"], "no.png: No such file or directory"),
        (["--files", "FILE", "--class", "true"], "class: the true classes are not known"),
    ],
)
def test_what_cannot_be_explained_is_named(
    options: list[str],
    message: str,
    run: Path,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    options = [option.replace("FILE", str(files[0])).replace("FOLDER", str(tmp_path)) for option in options]
    assert cli.main(["explain", str(run), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [{"layer": "nowhere"}, {"method": "nothing"}, {"target": "nobody"}])
def test_a_wrong_name_is_reported_before_the_test_set_is_predicted(
    option: Any, run: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    """Which takes minutes on ImageNet."""
    monkeypatch.delattr(Trained, "test_logits")
    for explain in (lambda: explain_run(run, **option), lambda: explain_mistakes(trained, **option)):
        with pytest.raises(UserError, match=r"there is no|has no layer"):
            explain()


def test_an_unknown_option_is_an_error(run: Path, trained: Trained):
    wrong: Any = {"methd": "gradcam"}
    for explain in (lambda: explain_run(run, **wrong), lambda: explain_mistakes(trained, **wrong)):
        with pytest.raises(TypeError, match="methd"):
            explain()


def test_explain_from_the_command_line(
    run: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = [
        *("--files", str(files[0]), str(files[2])),
        *("--layer", "stages.1"),
        *("--class", "class 2"),
        *("--method", "layercam"),
    ]
    sheet = tmp_path / "sheet.png"
    assert cli.main(["explain", str(run), *chosen, "--output", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1500
    assert (
        cli.main(["explain", str(run), "--indices", "3,1", "--output", str(sheet), "data.loader=reference"])
        == 0
    )


# --- predict ------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_test_set(trained: Trained, files: list[Path], no_data: None):
    logits = trained.logits(trained.inputs.read_images(files)[0])
    predictions, bad = predict_files(trained, files, top=3)
    assert bad == [] and [item.file for item in predictions] == files
    for item, row in zip(predictions, logits, strict=True):
        assert item.classes == tuple(np.argsort(-row)[:3])
        shares = torch.tensor(row, dtype=torch.float64).softmax(0)[list(item.classes)]
        np.testing.assert_allclose(item.probabilities, shares, atol=1e-6)


def test_predict_prints_json_and_names_bad_files(
    run: Path, files: list[Path], tmp_path: Path, no_data: None, capsys: Any
):
    nested = tmp_path / "folder" / "below"
    nested.mkdir(parents=True)
    (tmp_path / "folder" / ".hidden.png").write_text("no image")
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    shutil.copy(files[1], nested / "B.PNG")
    (nested / "bad.jpg").write_text("no image")
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "folder"), "nowhere.png", str(files[0]), str(tmp_path / "empty")]
    assert cli.main(["predict", str(run), *given, "--json", "--top", "9", "--device", "cpu"]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [item["file"] for item in found["predictions"]] == [str(nested / "B.PNG"), str(files[0])]
    first = found["predictions"][0]["top"]
    assert [set(entry) for entry in first] == [{"class", "index", "probability"}] * 4
    assert sum(entry["probability"] for entry in first) == pytest.approx(1)
    assert first[0]["class"] == f"class {first[0]['index']}"
    reasons = {
        str(nested / "bad.jpg"): NO_IMAGE,
        "nowhere.png": "No such file or directory",
        str(tmp_path / "empty"): f"no {FORMAT_NAMES} file in this folder",
    }
    assert {error["file"]: error["reason"] for error in found["errors"]} == reasons
    errors = [f"error: {file}: {reason}" for file, reason in reasons.items()]
    assert sorted(printed.err.splitlines()) == sorted(errors)


def test_predict_prints_a_table(
    run: Path, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    odd = tmp_path / f"[bold]{'long' * 40}.png"
    shutil.copy(files[0], odd)
    assert cli.main(["predict", str(run), str(odd), str(files[1]), "--top", "2"]) == 0
    printed = capsys.readouterr()
    header, first, second = printed.out.splitlines()
    assert (header.split(), printed.err) == (["file", "class", "2"], "")
    assert re.fullmatch(rf"{re.escape(str(odd))}  class \d +[<>]?\d+ %  class \d +[<>]?\d+ %", first)
    assert second.startswith(str(files[1]))
