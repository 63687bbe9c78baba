"""Writes predictions, calibration, scores of maps, and a folder for the Hub, of one run."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import __main__ as cli
from pipeline.errors import UserError
from pipeline.inference import export
from pipeline.inference.calibration import calibrate
from pipeline.inference.evaluate_run import predict_test_set
from pipeline.inference.hub_network import HubNetwork
from pipeline.inference.trained_model import Trained, load_trained
from tests.integration.test_export import python_block


@pytest.fixture
def files(trained: Trained, tmp_path: Path) -> list[Path]:
    """The first test images as PNG."""
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(paths, trained.splits.test.pixels(np.arange(3)), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_explain_scores_its_maps(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys = ("--indices", "3,1", "--score", "--output", str(tmp_path / "a.png"))
    assert cli.main(["explain", str(run), *keys]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("test 3: ") and lines[1].startswith("test 1: ")
    assert lines[-1] == str(tmp_path / "a.png")


def test_predict_prints_csv_with_all_probabilities(
    run: Path, trained: Trained, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    formula = tmp_path / "=1+1.png"
    shutil.copy(files[0], formula)
    assert cli.main(["predict", str(run), str(files[1]), formula.name, "nowhere.png", "--csv"]) == 2
    printed = capsys.readouterr()
    assert [line.split(":")[1].strip() for line in printed.err.splitlines()] == ["=1+1.png", "nowhere.png"]
    header, row = csv.reader(printed.out.splitlines())
    assert header == ["file", "predicted", "confidence", *(f"p(class {number})" for number in range(4))]
    logits = trained.logits(trained.inputs.read_images([files[1]])[0])
    shares = torch.tensor(logits).softmax(1)[0]
    assert [float(cell) for cell in row[3:]] == pytest.approx(shares.tolist(), abs=1e-6)
    assert (row[0], row[1]) == (str(files[1]), f"class {int(shares.argmax())}")


def test_evaluate_tells_the_calibration_and_writes_the_predictions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = tmp_path / "new" / "predictions.csv"
    assert cli.main(["evaluate", str(run), "--predictions", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(table)
    assert any(
        re.match(r"calibration +expected calibration error \d+\.\d+% \(15 bins\); temp", x) for x in lines
    )
    rows = list(csv.DictReader(table.read_text().splitlines()))
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert f"({right}/{len(rows)})" in lines[0] and len(rows) == 8
    evaluated = predict_test_set(run)  # the raw weights: the moving average is evaluated after them
    assert evaluated.result.correct == right and evaluated.result.ema is not None
    assert (evaluated.logits.argmax(1) == evaluated.labels).sum() == right
    assert calibrate(evaluated.logits, evaluated.labels) == evaluated.calibration


@pytest.mark.parametrize(("name", "reason"), [("a.xls", ".csv"), ("none.csv/a.csv", "--predictions")])
def test_a_table_is_refused_before_the_work(
    name: str, reason: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "none.csv").touch()
    assert cli.main(["evaluate", str(run), "--predictions", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert reason in printed.err and printed.out == ""


# --- the Hub ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the Hub, of the moving average."""
    folder = tmp_path_factory.mktemp("hub")
    export.export_run(run, "hub", output=folder, ema=True)
    return folder


def test_a_folder_for_the_hub_is_read_back(run: Path, hub: Path):
    """By `huggingface_hub`'s own loading and by ours, bit for bit; and again after its own saving."""
    average = load_trained(run, ema=True, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    expected = average.logits(pixels)
    assert issubclass(HubNetwork, PyTorchModelHubMixin)
    network = HubNetwork.from_pretrained(str(hub)).eval()
    assert network.inputs == average.inputs
    ours = load_trained(hub, device="cpu")
    assert (ours.name, ours.run, ours.config.model) == (run.name, None, average.config.model)
    saved = hub.with_name("saved")
    network.save_pretrained(saved)
    for logits in (
        network(network.inputs.normalise(pixels)).detach().numpy(),
        ours.logits(pixels),
        load_trained(saved, device="cpu").logits(pixels),
    ):
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    assert load_file(hub / "model.safetensors").keys() == load_trained(run).model.state_dict().keys()


def test_a_folder_for_the_hub_says_what_it_holds(run: Path, hub: Path):
    assert {path.name for path in hub.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    }
    data: Any = ModelCard.load(hub / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("quickres", "image-classification")
    (result,) = data.eval_results
    recorded = json.loads((run / "result.json").read_text())["test_ema_accuracy"]
    assert (result.metric_type, result.metric_value) == ("accuracy", pytest.approx(recorded, abs=1e-6))
    described = json.loads((hub / "config.json").read_text())
    assert (described["architecture"], described["num_classes"]) == ("resnet20", 4)
    assert str(run.parent) not in (hub / "config.json").read_text()  # no path of this machine
    size = json.loads((hub / "preprocessor_config.json").read_text())["crop_size"]
    assert size == {"height": 8, "width": 8}


def test_the_code_in_the_card_runs(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(hub)
    names: dict[str, Any] = {}
    exec(python_block(hub / "README.md"), names)
    assert tuple(names["logits"].shape) == (1, 4)


def test_the_commands_take_a_folder_for_the_hub(
    run: Path, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(run), "--format", "hub", "--output", "my hub"]) == 0
    *_, push, file = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"push it: \S*hf upload USER/resnet20-synthetic 'my hub' \.", push)
    assert file == "my hub/model.safetensors"
    assert cli.main(["evaluate", "my hub"]) == 0
    assert capsys.readouterr().out.startswith("test accuracy ")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["--checkpoint", "best"], r"--checkpoint best: .* holds one network for the Hub"),
        (["model.width=2"], "holds the weights of another network"),
    ],
)
def test_what_a_folder_for_the_hub_does_not_have(
    keys: list[str], message: str, hub: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["evaluate", str(hub), *keys]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"architectures": ["BertModel"]}', "not of a network of quickres"),
        ("config.json", '{"quickres": {}, "inputs": {"mean": []}}', "does not describe the inputs"),
        ("config.json", "{", "cannot be read"),
        ("model.safetensors", "nothing", "cannot be read"),
    ],
)
def test_a_damaged_folder_for_the_hub_is_named(
    name: str, content: str, message: str, hub: Path, tmp_path: Path
):
    folder = shutil.copytree(hub, tmp_path / "hub")
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}: {message}"):
        load_trained(folder)
    ours = message.replace("read", "loaded") if name == "model.safetensors" else message
    with pytest.raises(UserError, match=rf"{folder}/{name}: {ours}.*; give a folder"):
        HubNetwork.from_pretrained(folder)


@pytest.mark.parametrize(
    ("missing", "changes", "message"),
    [
        ("config.json", {}, "config.json: cannot be read (No such file or directory)"),
        ("model.safetensors", {}, "model.safetensors: cannot be loaded ("),
        (None, {"name": "resnet32"}, "model.safetensors: cannot be loaded (Error(s) in loading state_dict"),
        (None, {"name": "resnet21"}, "config.json: model.name"),
    ],
    ids=str,
)
def test_a_folder_without_our_network_is_named(
    missing: str | None, changes: dict[str, str], message: str, hub: Path, tmp_path: Path
):
    folder = shutil.copytree(hub, tmp_path / "hub")
    values = json.loads((folder / "config.json").read_text())
    values["quickres"]["model"] |= changes
    (folder / "config.json").write_text(json.dumps(values))
    if missing is not None:
        (folder / missing).unlink()
    with pytest.raises(UserError) as error:
        HubNetwork.from_pretrained(folder)
    assert message in str(error.value)


def test_a_repository_without_our_network_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="is neither a folder nor a name USER/NAME"):
        HubNetwork.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "foreign.json").write_text('{"architectures": ["BertModel"]}')
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **_: tmp_path / "foreign.json")
    with pytest.raises(UserError, match=r"user/name: its config\.json is not of a network of quickres"):
        HubNetwork.from_pretrained("user/name")


def download_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every repository of the Hub have the files of a folder."""

    def download(*_: object, filename: str, **__: object) -> str:
        return str(folder / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)


def test_damaged_weights_of_a_repository_are_named(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(hub, tmp_path / "hub")
    download_from(folder, monkeypatch)
    assert HubNetwork.from_pretrained("user/name").inputs.num_classes == 4
    weights = load_file(folder / "model.safetensors")
    save_file({f"a.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r'loaded \(Error\(s\) in loading .* Missing key\(s\) .*"head\.bias"'):
        HubNetwork.from_pretrained("user/name")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be loaded \("):
        HubNetwork.from_pretrained("user/name")


@pytest.mark.parametrize("place", ["folder", "repository"])
def test_a_device_that_is_not_there_is_no_fault_of_the_file(
    place: str, hub: Path, monkeypatch: pytest.MonkeyPatch
):
    download_from(hub, monkeypatch)
    with pytest.raises((RuntimeError, AssertionError)):  # of torch; a UserError is a ValueError
        HubNetwork.from_pretrained(hub if place == "folder" else "user/name", map_location="cuda:99")
