"""Exports the network of a run, in every format, and starts another run from its weights."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks.publish import prices
from benchmarks.publish.finished import check_together, read_finished
from benchmarks.publish.recipes import make_record
from pipeline import __main__ as cli
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.inference import export
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.training.build import build_raw_model
from pipeline.training.start_weights import find_start_weights
from tests.tiny import RECIPE, last_weights, tiny_trainer


def python_block(readme: Path) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.S)
    return block


@pytest.mark.parametrize("format", ["safetensors", "torch-export", "onnx"])
def test_export(
    format: str,
    run: Path,
    tmp_path: Path,
    no_data: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
):
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(run), "--format", format, "--output", str(tmp_path)]) == 0
    *_, summary, file = capsys.readouterr().out.splitlines()
    assert summary.startswith("the logits of 16 random images differ by ") and Path(file).parent == tmp_path
    trained = load_trained(run)
    description = export.describe(trained, "normalised" if format == "safetensors" else "unit")
    assert json.loads(description["class_names"]) == ["class 0", "class 1", "class 2", "class 3"]
    more = {"config.yaml"} if format == "safetensors" else set()
    assert {path.name for path in tmp_path.iterdir()} == {Path(file).name, "README.md"} | more
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1  # that of the umask
    for text in (*(description[key] for key in ("input", "resize", "mean")), "3. class 3"):
        assert text in (tmp_path / "README.md").read_text()
    # the code in the README runs, and takes the input that it names, any number of images
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with torch.no_grad():
        exec(python_block(tmp_path / "README.md"), names)
    assert tuple(names["logits"].shape) == (1, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    logits, metadata = run_exported(format, Path(file), names, trained, pixels)
    assert metadata == description
    np.testing.assert_allclose(logits, trained.logits(pixels), atol=1e-5)


def run_exported(
    format: str, file: Path, names: dict[str, Any], trained: Trained, pixels: np.ndarray
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the logits of the exported program, and the metadata of the file."""
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    if format == "safetensors":
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        return names["network"](trained.inputs.normalise(pixels)).detach().numpy(), metadata
    if format == "torch-export":
        metadata = dict.fromkeys(export.describe(trained, "unit"), "")
        torch.export.load(file, extra_files=metadata)
        return names["network"](unit).detach().numpy(), metadata
    (logits,) = names["session"].run(None, {"images": unit.numpy()})
    return logits, names["session"].get_modelmeta().custom_metadata_map


def test_an_export_can_take_normalised_images(trained: Trained, tmp_path: Path):
    exported = export.export(trained, "torch-export", tmp_path, input="normalised")
    images = torch.randn(3, 3, 8, 8)
    program = torch.export.load(exported.file).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images), trained.model(images), rtol=0, atol=1e-5)


def test_a_file_with_other_logits_is_not_kept(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other_weights(*arguments: Any) -> Any:
        return build_raw_model(load_config(RECIPE), 4, torch.device("cpu")).eval()

    monkeypatch.setitem(export._WRITERS, "torch-export", other_weights)
    with pytest.raises(UserError, match=r"export: .*16 random images differ .*; choose another --format"):
        export.export(trained, "torch-export", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package onnx; pip install -e '\.\[onnx\]'"):
        export.export(trained, "onnx", tmp_path)


def test_exported_weights_are_the_checkpoint_s(run: Path, trained: Trained, tmp_path: Path):
    exported = export.export(trained, "safetensors", tmp_path)
    weights = load_file(exported.file)
    assert weights.keys() == last_weights(run).keys()
    assert all(torch.equal(weights[key], value) for key, value in last_weights(run).items())
    assert (exported.difference, exported.tolerance) == (0, 0)


def test_a_record_is_made_of_it(run: Path):
    finished, result = read_finished(run), json.loads((run / "result.json").read_text())
    check_together([finished])
    record = make_record([finished], [finished], "made images")
    assert (record.variant, record.accuracy, record.accuracy_n, record.epochs) == (
        RECIPE.stem,
        result["test_accuracy"],
        1,
        2.0,
    )
    assert (
        record.train_s == result["train_s"] - result["compile_s"]
        and record.parameters == result["num_parameters"]
    )
    assert record.gpu is None and not prices.is_current(record)  # the recipe is not in configs/


def test_a_run_starts_from_the_weights_of_a_run(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Of the run, its newest intact checkpoint; or a checkpoint of it by name. The log says which."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    checkpoints = sorted((copied / "checkpoints").glob("step-*"))
    assert find_start_weights(str(copied)) == checkpoints[-1] / "weights.safetensors"
    trainer = tiny_trainer(load_config(RECIPE, [f"model.weights={copied}", "duration=1st"]))
    assert caplog.messages == [f"model.weights: taken from {checkpoints[-1] / 'weights.safetensors'}"]
    state = trainer.state.model.state_dict()
    assert all(torch.equal(state[key].cpu(), value) for key, value in last_weights(copied).items())
    short = f"step-{int(checkpoints[0].name.removeprefix('step-'))}"
    for name in (checkpoints[0].name, short):
        assert (
            find_start_weights(str(copied / "checkpoints" / name)) == checkpoints[0] / "weights.safetensors"
        )
    with pytest.raises(UserError, match=r"model\.weights: .* holds no step 99; it holds"):
        find_start_weights(str(copied / "checkpoints/step-99"))
    (checkpoints[-1] / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.weights: .*weights\.safetensors"):
        find_start_weights(str(checkpoints[-1]))
    for checkpoint in checkpoints:
        (checkpoint / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.weights: .*run has no intact checkpoint"):
        find_start_weights(str(copied))
    with pytest.raises(UserError, match=r"model\.weights: .*not a run folder"):
        find_start_weights(str(tmp_path))
