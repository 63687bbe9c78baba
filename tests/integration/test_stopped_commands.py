"""Checks that commands on a run print what they have when Ctrl-C ends them."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline import __main__ as cli
from pipeline import train
from pipeline.inference import predict_files as predicting
from pipeline.inference.preprocessing import InputSpec
from pipeline.training.evaluate import Seen
from tests.tiny import RECIPE, only_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    keys = ("duration=1st", "log.tensorboard=false", "log.report=false", "log.explain=false")
    assert train.main([str(RECIPE), f"log.dir={folder}", *keys]) == 0
    return only_run(folder)


def test_predict_prints_the_images_before_ctrl_c(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in files:
        Image.new("RGB", (16, 16)).save(path)
    read = InputSpec.read_images

    def stop_at_the_second(self: InputSpec, paths: list[Path], *rest: Any) -> Any:
        if files[1] in paths:
            raise KeyboardInterrupt
        return read(self, paths, *rest)

    monkeypatch.setattr(predicting, "_CHUNK", 1)
    monkeypatch.setattr(InputSpec, "read_images", stop_at_the_second)
    assert cli.main(["predict", str(run), *map(str, files), "--json"]) == 130
    (found,) = json.loads(capsys.readouterr().out)["predictions"]
    assert found["file"] == str(files[0])


def test_evaluate_prints_the_images_before_ctrl_c(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    add = Seen.add

    def stop_at_the_second(self: Seen, *batch: Any) -> None:
        if self.parts:
            raise KeyboardInterrupt
        add(self, *batch)

    monkeypatch.setattr(Seen, "add", stop_at_the_second)
    assert cli.main(["evaluate", str(run), "data.eval_batch_size=5"]) == 130
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("stopped after 5 of ") and "are right" in line
