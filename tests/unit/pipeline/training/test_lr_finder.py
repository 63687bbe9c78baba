"""Checks the result of the learning-rate range test, and that it changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import __main__ as cli
from pipeline.errors import Stopped
from pipeline.process.command_line import pipeline_command
from pipeline.training.lr_finder import RangeTest, range_test, smooth
from tests.tiny import RECIPE, assert_equal, tiny_config, tiny_trainer, train_steps

RATES = np.geomspace(1e-4, 10, 101)


def result_of(losses: np.ndarray) -> RangeTest:
    return RangeTest(RATES, losses, smooth(losses), False)


def test_the_suggestion_is_where_the_loss_stops_falling():
    """A valley with its steepest slope at 0.01 and its ground at 0.1, under noise."""
    x = np.log10(RATES)
    losses = np.where(x < -1, 2 - np.tanh(2 * (x + 2)), 2 - np.tanh(2.0) + 2 * (x + 1) ** 2)
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(x))
    result = result_of(losses + noise)
    assert result.suggested == pytest.approx(0.1, rel=0.7)
    assert result.steepest == pytest.approx(0.01, rel=0.7)


def test_a_loss_that_never_falls_gives_no_suggestion():
    result = result_of(np.linspace(1, 9, 101))
    assert result.suggested is None and result.steepest is None


def test_a_loss_that_falls_to_the_end_gives_no_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    falling = result_of(2 - np.tanh(2 * (np.log10(RATES) + 2)))
    assert falling.suggested is None and falling.steepest == pytest.approx(0.01, rel=0.3)
    # the next losses were worse
    ended = RangeTest(falling.rates, falling.losses, falling.smoothed, diverged=True)
    assert ended.suggested == pytest.approx(10)
    monkeypatch.setattr("pipeline.training.lr_finder.lr_find", lambda *_: falling)
    assert cli.main(["lr-find", str(RECIPE), f"log.dir={tmp_path}"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("no suggestion: ") and "--max" in last


def test_huge_losses_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    result = result_of(np.linspace(4e8, 2e8, 101))
    monkeypatch.setattr("pipeline.training.lr_finder.lr_find", lambda *_: result)
    assert cli.main(["lr-find", str(RECIPE), f"log.dir={tmp_path}"]) == 0
    assert "; loss 3.94e+08, smallest 2.06e+08 at 10\n" in capsys.readouterr().out


def test_smoothing_does_not_delay():
    assert smooth(np.full(30, 2.5)) == pytest.approx(2.5)
    line = np.arange(101.0)
    assert smooth(line)[20:-20] == pytest.approx(line[20:-20])
    assert smooth(np.array([1.0])) == pytest.approx(1)
    # in memory that grows with the number of steps, not with its square
    assert smooth(np.ones(30_000)) == pytest.approx(1)


def state_of(trainer: Any) -> dict[str, Any]:
    state = trainer.state
    average = dict(state.ema.model.state_dict()) if state.ema is not None else {}
    return {"weights": dict(state.model.state_dict()), "ema": average, "lr": state.lr, **state.state_dict()}


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize(
    "keys",
    [
        ("precision.mode=fp16", "precision.init_scale=1024.0", "ema.decay=0.9"),
        ("optimizer.name=adamw", "augment.mix=mixup"),
        ("optimizer.name=muon", "precision.mode=bf16"),
    ],
)
def test_afterwards_everything_is_as_before(keys: tuple[str, ...], first: int):
    """Bit for bit: weights, norm statistics, average, optimizer, scaler, sums, generators, later steps."""
    config = tiny_config(*keys)
    trainer, twin = tiny_trainer(config), tiny_trainer(config)
    for each in (trainer, twin):
        train_steps(each, first)
    torch.manual_seed(5)
    before = state_of(trainer)
    before = {key: _copy(value) for key, value in before.items()}
    done: list[int] = []
    result = range_test(config, trainer.state, trainer.loaders.train, 1e-3, 50.0, 12, done.append)
    assert done == list(range(1, len(done) + 1)) and len(done) >= len(result.losses) > 3
    assert_equal(state_of(trainer), before)
    assert all(parameter.grad is None for parameter in trainer.state.model.parameters())
    assert train_steps(trainer, 4) == train_steps(twin, 4)


@pytest.mark.usefixtures("process_state")
def test_ctrl_c_leaves_the_curve_so_far_and_the_state_as_before():
    config = tiny_config()
    trainer = tiny_trainer(config)
    before = {key: _copy(value) for key, value in state_of(trainer).items()}

    def report(step: int) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(Stopped) as stopped:
        range_test(config, trainer.state, trainer.loaders.train, 1e-3, 1e-2, 20, report)
    result = stopped.value.partial
    assert result.stopped and len(result.losses) == len(result.rates) == len(result.smoothed) == 5
    assert_equal(state_of(trainer), before)


def test_no_suggestion_comes_from_a_part_of_the_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    valley = replace(result_of(1 + (np.log10(RATES) + 1) ** 2), stopped=True)

    def stop(*_: Any) -> None:
        raise Stopped(valley)

    monkeypatch.setattr("pipeline.training.lr_finder.lr_find", stop)
    assert cli.main(["lr-find", str(RECIPE), f"log.dir={tmp_path}", "--steps", "200"]) == 130
    *_, curve, last = capsys.readouterr().out.splitlines()
    assert "curve: " in curve and last == "no suggestion: stopped after 101 of 200 steps"


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return type(value)(_copy(item) for item in value) if isinstance(value, list | tuple) else value


@pytest.mark.usefixtures("process_state")
def test_each_step_has_its_rate_and_the_test_ends_when_the_loss_diverges():
    trainer = tiny_trainer(tiny_config())
    result = range_test(trainer.config, trainer.state, trainer.loaders.train, 1e-3, 1e6, 60)
    assert result.diverged and len(result.rates) == len(result.losses) == len(result.smoothed) < 60
    assert result.rates[:3] == pytest.approx(1e-3 * 1e9 ** (np.arange(3) / 59))
    assert np.isfinite(result.losses).all()


@pytest.mark.usefixtures("process_state")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    keys = (f"log.dir={tmp_path}", "optimizer.momentum=0.8")
    assert cli.main(["lr-find", str(RECIPE), keys[0], "--steps", "20", keys[1]]) == 0
    _, curve, suggestion, *last = capsys.readouterr().out.splitlines()
    picture = tmp_path / "lr-find-tiny.png"
    assert curve == f"curve: {picture}"
    if not suggestion.startswith("no suggestion: "):
        assert suggestion.startswith("suggested maximum: ") and "Smith 2017, arXiv:1506.01186" in suggestion
        rate = suggestion.split()[2].rstrip(",")
        assert last == [f"use it: {pipeline_command('train', RECIPE, *keys, f'optimizer.lr={rate}')}"]
    with Image.open(picture) as image:
        assert image.size == (1000, 600)


def test_the_suggested_command_names_one_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    valley = result_of(1 + (np.log10(RATES) + 1) ** 2)
    monkeypatch.setattr("pipeline.training.lr_finder.lr_find", lambda *_: valley)
    assert cli.main(["lr-find", str(RECIPE), "optimizer.lr=0.5", f"log.dir={tmp_path}"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"use it: {pipeline_command('train', RECIPE, f'log.dir={tmp_path}', 'optimizer.lr=0.1')}"


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize(("lowest", "highest"), [("1", "0.1"), ("0.1", "inf"), ("nan", "1")])
def test_an_empty_range_is_refused(
    lowest: str, highest: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["lr-find", str(RECIPE), f"log.dir={tmp_path}", "--min", lowest, "--max", highest]) == 2
    assert f"error: --min {lowest} and --max {highest}" in capsys.readouterr().err
