"""The library as the documentation shows it. Training by its parts equals the training of a run."""

import asyncio
import re
import signal
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import api
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.training.evaluate import EvalResult
from tests.gpus import needs_gpu
from tests.python import ROOT
from tests.tiny import last_weights, tiny_config

pytestmark = pytest.mark.usefixtures("process_state")


def example() -> str:
    found = re.search(r"    from pipeline import api\n.*?(?=\n\n\S)", api.__doc__ or "", re.S)
    assert found is not None
    return textwrap.dedent(found[0])


def test_the_example_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Run the lines of the docstring for two steps in place of three epochs."""
    lines = example()
    assert len(lines.splitlines()) == 11
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines.replace("configs/", f"{ROOT}/configs/").replace("duration=3ep", "duration=2st"), names)
    result = names["result"]
    assert f"{result.accuracy:.2%} of 360 test images" in capsys.readouterr().out
    assert names["mistakes"].found.maps.shape == (10, 32, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.png"]
    with Image.open("mistakes.png") as picture:
        assert picture.size[0] > 1500


def test_the_readme_shows_the_same_lines():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert [block.strip() for block in blocks] == [example().strip()]


def test_a_run_and_fit_name_milestones_that_they_do_not_come_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keys = [
        "schedule.name=step",
        "schedule.warmup=0ep",
        "schedule.milestones=[1ep, 2ep]",
        "log.tensorboard=false",
        "log.report=false",
    ]
    config = tiny_config(f"log.dir={tmp_path}", "duration=2ep", *keys)
    api.train(config, "tiny")
    splits = api.load_splits(config)
    api.fit(config, api.build_model(config, splits), api.build_loaders(config, splits))
    assert (
        capsys.readouterr()
        .out.replace("\n", " ")
        .count("warning: schedule.milestones: 2ep is not before the end of the run, 2ep: ")
        == 2
    )


def test_fit_trains_as_a_run_does(tmp_path: Path):
    config = tiny_config(f"log.dir={tmp_path}", "duration=2ep", "log.tensorboard=false")
    run = api.train(config, "tiny")
    splits = api.load_splits(config)
    model = api.build_model(config, splits)
    result = api.fit(config, model, api.build_loaders(config, splits), quiet=True)
    expected = last_weights(run.path)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert result == api.evaluate_run(run.path)


def test_weights_from_a_file_predict_without_training(tmp_path: Path):
    """`export` wrote the weights. They fit a network whose head has as many classes."""
    config = tiny_config(f"log.dir={tmp_path}/runs", "duration=1ep", "log.tensorboard=false")
    run = api.train(config, "tiny")
    expected = api.load_trained(run.path)
    exported = api.export_run(run.path, "safetensors", output=tmp_path)
    config = tiny_config(f"model.weights={exported.file}")
    splits = api.load_splits(config)
    found = api.Trained.of(config, api.build_model(config, splits), splits)
    assert (found.test_logits() == expected.test_logits()).all()
    Image.fromarray(splits.test.pixels(np.arange(1))[0]).save(tmp_path / "0.png")
    assert api.predict_files(found, [tmp_path / "0.png"]) == api.predict_files(expected, [tmp_path / "0.png"])


def test_it_works_in_a_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A notebook runs its cells inside an event loop.

    After a run its interrupt button works as before, and no progress bar is drawn into its output.
    """
    config = tiny_config(f"log.dir={tmp_path}", "duration=2st", "log.tensorboard=false")

    async def cell() -> EvalResult:
        handler = signal.getsignal(signal.SIGINT)
        api.train(config)
        assert signal.getsignal(signal.SIGINT) is handler
        splits = api.load_splits(config)
        return api.fit(config, api.build_model(config, splits), api.build_loaders(config, splits))

    assert asyncio.run(cell()).seen == 8
    assert "\x1b" not in capsys.readouterr().out


def test_a_network_of_one_s_own_is_trained_and_copied(capsys: pytest.CaptureFixture[str]):
    config = tiny_config()
    splits = api.load_splits(config)
    first = torch.nn.Conv2d(3, 8, 3)
    model = torch.nn.Sequential(
        first, torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)
    )
    before = first.weight.detach().clone()
    api.fit(config, model, api.build_loaders(config, splits), quiet=True)
    assert capsys.readouterr().out == ""
    model.compile(
        backend="eager"
    )  # a config may let `fit` compile in place; the copy is eager again, and can be explained
    trained = api.Trained.of(config, model, splits)
    assert not torch.equal(before, trained.model.state_dict()["0.weight"])
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in trained.model.state_dict().items()
    )
    explained = api.explain_mistakes(trained, 3)
    assert (explained.layer, len(explained)) == ("1", 3)
    assert model.training and all(
        parameter.requires_grad for parameter in model.parameters()
    )  # `fit` leaves the network like this


@pytest.mark.parametrize("whole", [True, False])
def test_a_part_in_eval_mode_stays_in_it(whole: bool):
    config = tiny_config("duration=2st", "log.eval_every=1st")
    splits = api.load_splits(config)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    model.append(torch.nn.Linear(8, 4))
    (model if whole else model[1]).eval()
    before = model.state_dict()["1.running_mean"].clone()
    api.fit(config, model, api.build_loaders(config, splits), quiet=True)
    assert [model.training, model[0].training, model[1].training] == [True, True, whole]
    assert torch.equal(before, model.state_dict()["1.running_mean"]) is not whole


def test_a_model_elsewhere_is_named():
    config = tiny_config()
    splits = api.load_splits(config)
    model = api.build_model(config, splits).to("meta")
    with pytest.raises(
        UserError,
        match=r"fit: the model is on meta, the loaders deliver on cpu; .*model\.to\('cpu'\)",
    ):
        api.fit(config, model, api.build_loaders(config, splits))


@needs_gpu()
def test_fit_on_a_gpu_is_captured():
    config = load_config(
        ROOT / "configs/quickstart.yaml", ["duration=20st", "precision.mode=fp16", "runtime.device=gpu"]
    )
    splits = api.load_splits(config)
    model = api.build_model(config, splits)
    result = api.fit(config, model, api.build_loaders(config, splits), quiet=True)
    assert result.seen == 360
    explained = api.explain_mistakes(api.Trained.of(config, model, splits), count=4)
    assert explained.found.maps.shape == (4, 32, 32)
