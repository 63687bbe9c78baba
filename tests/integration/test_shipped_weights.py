"""Weights are made out of a run, and every command takes their name in place of the run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.__main__ import main as benchmarks
from benchmarks.publish import finished, model_card, pretrained
from benchmarks.publish.finished import read_finished
from pipeline import __main__ as cli
from pipeline import api, train
from pipeline.pretrained import registry
from pipeline.pretrained.registry import Shipped, find_shipped, read_registry
from tests.shipped import check_accuracy, check_weights, logits_of_card
from tests.tiny import RECIPE, last_weights, only_run, tiny_config, tiny_trainer

NAME = "tiny_resnet20"
COMMIT = "c" * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """A run of the recipe tests/tiny.yaml."""
    folder = tmp_path_factory.mktemp("runs")
    keys = (f"log.dir={folder}", f"log.name={RECIPE.stem}", "log.tensorboard=false")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUICKRES_COMMIT", COMMIT)
        assert train.main([str(RECIPE), *keys]) == 0
    return only_run(folder)


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with the weights of the run."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "registry.json").write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        use(patch, folder)
        assert benchmarks(["pretrained", str(run), "--name", NAME]) == 0
    return folder


def use(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Use another registry, and tests/tiny.yaml as the only shipped recipe."""
    patch.setattr(registry, "folder", lambda: folder)
    for module in (finished, pretrained):
        patch.setattr(module, "recipe_path", lambda name: RECIPE.with_name(f"{name}.yaml"))


@pytest.fixture(autouse=True)
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_state: None) -> Path:
    """Use a copy of that registry, and an empty current folder, which is returned."""
    shutil.copytree(made, tmp_path / "registry")
    use(monkeypatch, tmp_path / "registry")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("QUICKRES_COMMIT", COMMIT)
    return tmp_path / "work"


@pytest.fixture
def shipped() -> Shipped:
    return read_registry()[NAME]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# --- making them --------------------------------------------------------------------------------------------


def test_the_entry_describes_the_run(run: Path, shipped: Shipped):
    result = json.loads((run / "result.json").read_text())
    assert (shipped.recipe, shipped.seed, shipped.commit) == ("tiny", 3, COMMIT)
    assert (shipped.data, shipped.num_test_images) == ("random images", result["test_seen"])
    assert shipped.accuracy_in_training == shipped.accuracy_float32 == result["test_accuracy"]
    assert shipped.accuracy_float32 - shipped.accuracy <= pretrained.MOST_LOST_BY_ROUNDING
    assert shipped.num_parameters == result["num_parameters"] and shipped.licence == "Apache-2.0"
    assert shipped.config["model"]["name"] == "resnet20" and shipped.config["duration"] == "3ep"
    assert str(run.parent) not in (registry.folder() / "registry.json").read_text()


def test_the_file_holds_the_last_step_in_half_precision(run: Path, shipped: Shipped):
    weights, expected = load_file(shipped.verified_path()), last_weights(run)
    counts = {key for key in expected if key.endswith("num_batches_tracked")}
    assert counts and weights.keys() == expected.keys() - counts
    for key, value in weights.items():
        assert value.dtype == (torch.float16 if value.ndim > 1 else torch.float32), key
        assert torch.equal(value, expected[key].to(value.dtype))
    assert shipped.path.stat().st_size < 2.2 * shipped.num_parameters
    assert shipped.path.stat().st_mode & 0o777 == shipped.card.stat().st_mode & 0o777


def test_the_checks_of_shipped_weights_accept_it(shipped: Shipped, tmp_path: Path):
    """The registry may be empty: the checks of its weights are made here, with the test images as files."""
    check_weights(shipped)
    test = api.load_splits(tiny_config()).test
    for index, pixels in enumerate(test.pixels(np.arange(len(test)))):
        folder = tmp_path / "test" / f"class {test.labels[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    check_accuracy(shipped, tmp_path)
    next((tmp_path / "test").rglob("*.png")).unlink()
    with pytest.raises(AssertionError):
        check_accuracy(shipped, tmp_path)


def test_the_card_s_code_computes_the_same_logits(shipped: Shipped):
    card = shipped.card.read_text()
    assert card == model_card.render(shipped)
    for text in (COMMIT, "configs/tiny.yaml", "random images", "Apache-2.0", shipped.sha256, "[0.25, 0.25"):
        assert text in card
    assert f"{shipped.accuracy:.2%}, computed in float32" in card
    pixels = np.random.default_rng(1).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    expected = torch.from_numpy(api.load_trained(NAME).logits(pixels))
    torch.testing.assert_close(logits_of_card(shipped, images), expected, rtol=1e-4, atol=1e-5)


def test_the_name_is_the_recipe_s_and_older_weights_are_replaced(
    run: Path, shipped: Shipped, capsys: pytest.CaptureFixture[str]
):
    assert benchmarks(["pretrained", str(run)]) == 0
    output = capsys.readouterr().out
    assert "tiny: half precision" in output and "the run recorded" in output and "bytes" in output
    assert list(read_registry()) == ["tiny", NAME] and read_registry()[NAME] == shipped
    assert benchmarks(["pretrained", str(run), "--name", NAME]) == 0
    assert read_registry()[NAME] == shipped


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (["--name", "a/b"], {}, "--name: 'a/b' is no name"),
        ([], {"dirty": True}, "its code is not one commit"),
        ([], {"commit": None}, "its code is not one commit"),
        ([], {"test_seen": 10_000}, "was tested on 10,000 images, and the test set has 8; give"),
        ([], {"test_accuracy": 0.99}, "the accuracy is not the recorded one: half precision"),
        ([], {"label_smoothing: 0.0": "label_smoothing: 0.1"}, "is not configs/tiny.yaml as it is now"),
        ([], {"image_size: 8": "image_size: 16"}, "is not configs/tiny.yaml"),
    ],
)
def test_a_run_that_does_not_suit_is_refused(
    options: list[str],
    change: dict[str, Any],
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    changed = tmp_path / "tiny-20260101-000000"
    shutil.copytree(run, changed)
    for old, new in change.items():
        for name in ("env.json", "result.json"):
            values = json.loads((changed / name).read_text())
            if old in values:
                (changed / name).write_text(json.dumps(values | {old: new}))
        config = changed / "config.yaml"
        config.write_text(config.read_text().replace(old, str(new)) if ":" in old else config.read_text())
    before = (registry.folder() / "registry.json").read_text()
    assert benchmarks(["pretrained", str(changed), *options]) == 2
    assert message in capsys.readouterr().err
    assert (registry.folder() / "registry.json").read_text() == before


def test_the_weights_are_those_of_the_last_step_or_none(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, tmp_path / "tiny")
    last = max((tmp_path / "tiny" / "checkpoints").glob("step-*"))
    shutil.rmtree(last)
    assert benchmarks(["pretrained", str(tmp_path / "tiny")]) == 2
    assert "holds no step 15" in capsys.readouterr().err


def test_rounding_that_costs_too_much_is_refused(run: Path):
    result = pretrained.Measured(recorded=0.9130, full=0.9130, half=0.9128, num_images=10_000)
    of_cifar = read_finished(run)
    of_cifar = replace(of_cifar, result=of_cifar.result.model_copy(update={"test_seen": 10_000}))
    result.check(of_cifar)
    with pytest.raises(api.UserError, match=r"half precision loses more than 0\.02 points: half .*91\.27%"):
        replace(result, half=0.9127).check(of_cifar)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("model.name=resnet18", "resnet20"),
        ("model.name=plain20", "resnet20"),
        ("model.shortcut=B", "A"),
        ("model.width=2", "1"),
        ("model.squeeze_excitation=4", "0"),
        ("model.preactivation=true", "neither"),
    ],
)
def test_a_network_that_the_card_does_not_define(key: str, known: str):
    reason = model_card.why_no_card(tiny_config(key))
    assert reason is not None and key.partition("=")[0] in reason and known in reason
    assert model_card.why_no_card(tiny_config()) is None


def test_a_folder_with_the_recipe_s_data_set_gives_the_recipe_s_config(run: Path):
    """A run on class folders of the original images ships the recipe's data set."""
    on_folder = tiny_config("data.dataset=folder", "data.root=/somewhere", "data.cache_dir=/elsewhere")
    of_folder = replace(read_finished(run), config=on_folder)
    assert pretrained._portable_config(of_folder, "random images").data == tiny_config().data
    other = pretrained._portable_config(of_folder, "photographs").data
    assert (other.dataset, other.root, other.cache_dir) == ("folder", "data", None)
    with pytest.raises(api.UserError, match="name them, such as --data CIFAR-10"):
        pretrained._name_data(of_folder, None)
    assert pretrained._name_data(of_folder, "photographs") == "photographs"


# --- using them ---------------------------------------------------------------------------------------------


def test_evaluate_gives_the_recorded_accuracy(shipped: Shipped, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", NAME]) == 0
    output = capsys.readouterr().out
    assert f"test accuracy {shipped.accuracy:.4%}" in output
    assert f"recorded      {shipped.accuracy:.4%} on the 8 test images of random images\n" in output
    result = api.evaluate_run(NAME, overrides=["precision.mode=bf16", "data.eval_batch_size=3"])
    assert result.seen == shipped.num_test_images


def test_the_network_computes_in_float32_unless_another_precision_is_given():
    trained = api.load_trained(NAME)
    assert (trained.config.precision.mode, trained.config.runtime.tf32) == ("fp32", False)
    assert trained.name == NAME and trained.run is None and trained.checkpoint is None
    assert next(trained.model.parameters()).dtype == torch.float32
    statistics = ["data.mean=[0.1, 0.2, 0.3]", "data.std=[1.0, 1.0, 1.0]"]
    changed = api.load_trained(NAME, overrides=["precision.mode=bf16", "runtime.tf32=true", *statistics])
    assert (changed.config.precision.mode, changed.config.runtime.tf32) == ("bf16", True)
    assert changed.inputs.mean == (0.1, 0.2, 0.3)


def test_predict(photo: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["predict", NAME, str(photo), "--json", "--device", "cpu"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["run"], said["checkpoint"], said["ema"]) == (NAME, None, False)
    (expected,), bad = api.predict_files(api.load_trained(NAME), [photo])
    assert not bad and [item["index"] for item in said["predictions"][0]["top"]] == list(expected.classes)
    assert cli.main(["predict", NAME, str(photo)]) == 0


def test_explain_writes_to_the_current_folder(photo: Path, work: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["explain", NAME, "--files", str(photo)]) == 0
    assert capsys.readouterr().out == f"{NAME}-explained.png\n"
    assert [path.name for path in work.iterdir()] == [f"{NAME}-explained.png"]
    assert api.explain_run(NAME, indices=[0], output="other.png") == Path("other.png")


def test_export_writes_to_the_current_folder(work: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["export", NAME, "--format", "safetensors"]) == 0
    assert capsys.readouterr().out.endswith(f"{NAME}-safetensors/model.safetensors\n")
    assert {path.name for path in work.iterdir()} == {f"{NAME}-safetensors"}
    folder = work / f"{NAME}-safetensors"
    assert f"the weights {NAME} of quickres" in (folder / "README.md").read_text()
    expected = api.load_trained(NAME).model.state_dict()
    assert all(
        torch.equal(value, expected[key]) for key, value in load_file(folder / "model.safetensors").items()
    )


@pytest.mark.parametrize("options", [["--ema"], ["--checkpoint", "best"], ["--checkpoint", "step-8"]])
@pytest.mark.parametrize("command", ["predict", "export"])
def test_a_name_has_no_checkpoints(
    command: str, options: list[str], photo: Path, capsys: pytest.CaptureFixture[str]
):
    rest = [str(photo)] if command == "predict" else ["--format", "onnx"]
    assert cli.main([command, NAME, *rest, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {options[0]}") and f"{NAME} names shipped weights" in error
    assert error.count("\n") == 1


def test_an_unknown_run_names_the_weights(photo: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evaluate", "nothing"]) == 2
    error = capsys.readouterr().err
    assert "nothing: not a run folder (no config.yaml in it). Known: none yet" in error
    assert error.endswith(f". Shipped weights: {NAME}\n")
    assert cli.main(["export", NAME, "--format", "safetensors"]) == 0
    assert cli.main(["evaluate", "nothing"]) == 2
    assert "Known: none yet" in capsys.readouterr().err  # the export is no run, though it has a config.yaml


def test_a_folder_of_that_name_wins(run: Path):
    shutil.copytree(run, NAME)
    assert cli.main(["evaluate", NAME, "--checkpoint", "last"]) == 0
    trained = api.load_trained(NAME)
    assert trained.run is not None and find_shipped(NAME) is None


def test_a_damaged_file_is_one_message(shipped: Shipped, photo: Path, capsys: pytest.CaptureFixture[str]):
    content = bytearray(shipped.path.read_bytes())
    content[-1] ^= 1
    shipped.path.write_bytes(content)
    assert cli.main(["predict", NAME, str(photo)]) == 2
    assert train.main([str(RECIPE), f"model.weights={NAME}"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all("damaged (its SHA-256" in error for error in errors)


# --- starting from them -------------------------------------------------------------------------------------


def test_a_training_starts_from_them(work: Path):
    expected = api.load_trained(NAME).model.state_dict()
    state = tiny_trainer(tiny_config(f"model.weights={NAME}")).state.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.items() if value.ndim)
    keys = [f"model.weights={NAME}", "duration=2st", "log.dir=runs", "log.tensorboard=false"]
    assert train.main([str(RECIPE), *keys]) == 0
    assert f"weights: {NAME}" in (only_run(work / "runs") / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        (["model.name=plain20"], "set model.name=resnet20"),  # its weights have the same names and shapes
        (["model.name=resnet32", "model.shortcut=B"], "set model.name=resnet20 model.shortcut=A"),
        (["model.width=2"], "set model.width=1"),
        (["model.blur_pool=true"], "set model.blur_pool=false"),
    ],
)
def test_another_network_is_told_the_keys(keys: list[str], remedy: str, capsys: pytest.CaptureFixture[str]):
    assert train.main([str(RECIPE), f"model.weights={NAME}", *keys, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: model.weights: {NAME} is of another network") and error.count("\n") == 1
    assert error.endswith(f"{remedy}\n")


def test_another_number_of_classes_starts_with_a_new_head(caplog: pytest.LogCaptureFixture):
    config = tiny_config(f"model.weights={NAME}", "data.num_classes=7")
    model = api.build_model(config, api.load_splits(config))
    assert "has no head for 7 classes" in caplog.text
    expected, state = api.load_trained(NAME).model.state_dict(), model.state_dict()
    assert state["head.weight"].shape == (7, 64)
    assert torch.equal(state["stages.2.2.conv2.weight"], expected["stages.2.2.conv2.weight"])


def test_an_unknown_file_names_the_weights(capsys: pytest.CaptureFixture[str]):
    assert train.main([str(RECIPE), "model.weights=nothing", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert "model.weights: nothing does not exist" in error and f"shipped weights ({NAME})" in error
