"""The parts of a run's time have no gaps, and no part is counted twice."""

import time
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from pipeline import begin
from pipeline.config import load_config
from pipeline.data import Loader
from pipeline.run.timeline import Timeline
from pipeline.training.evaluate import EvalResult
from pipeline.training.evaluator import Evaluator
from tests.tiny import tiny_config, tiny_trainer


def test_the_parts_add_up():
    with patch.object(time, "perf_counter") as clock:
        clock.return_value = 100.0
        timeline = Timeline(90.0)
        timeline.begin("imports", at=95.0)
        timeline.begin("compile")
        clock.return_value = 110.0
        timeline.move(2.0, "compile", "capture")
        with timeline.within("evaluation"):
            clock.return_value = 113.0
        timeline.begin("training")
        clock.return_value = 120.0
        expected = {"launcher": 5.0, "imports": 5.0, "compile": 8.0, "capture": 2.0, "evaluation": 3.0}
        assert timeline.seconds() == {**expected, "training": 7.0}
        timeline.begin("saving", at=80.0)
        assert sum(timeline.seconds().values()) == 30.0, "a time before the present part began is that time"


@pytest.mark.usefixtures("process_state")
def test_the_evaluation_of_a_run_that_is_continued_from_its_last_step():
    trainer = tiny_trainer(tiny_config())
    trainer.state.step = trainer.plan.total_steps
    trainer.fit()
    parts = trainer.timeline.seconds()
    assert parts["evaluation"] > parts["compile"]


@pytest.mark.usefixtures("process_state")
def test_an_evaluation_that_compiles_and_captures_is_told_apart(monkeypatch: pytest.MonkeyPatch):
    def evaluate(self: Evaluator, loader: Loader) -> EvalResult:
        network = self.network("weights", self.state.model)
        network.first_pass_s, network.capture_s = 0.25, 0.125  # as the first pass of a shape on a GPU
        time.sleep(0.5)
        return EvalResult(1, 2, 0.5)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    trainer = tiny_trainer(tiny_config("duration=1ep"))
    trainer.fit()
    parts = trainer.timeline.seconds()
    assert parts["capture"] == 0.125
    assert parts["compile"] > 0.25
    assert 0.125 <= parts["evaluation"] < 0.5
    assert trainer.evaluator.take_warmup_s() == (0, 0)


def test_data_is_read_for_the_first_time_once(tmp_path: Path):
    for part in ("train", "test"):
        for number in range(4):
            folder = tmp_path / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 2 * number, 3 * number)).save(folder / f"{number}.png")
    keys = ("data.dataset=folder", f"data.root={tmp_path}", "data.image_size=8")
    config = load_config(overrides=keys)
    readings = []
    for _ in range(2):
        reading = begin.read_data_beside(config)
        assert reading is not None
        readings.append(reading.result()[1])
    assert [reading.first_time for reading in readings] == [True, False]
    assert all(reading.seconds > 0 for reading in readings)
    digits = begin.read_data_beside(load_config(overrides=["data.dataset=digits"]))
    assert digits is not None and digits.result()[1].first_time is None
