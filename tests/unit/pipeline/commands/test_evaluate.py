"""Checks what `evaluate` prints."""

from types import SimpleNamespace

import pytest

from pipeline import __main__ as cli
from pipeline.run.records import EvalFigures

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.mark.parametrize(("loss", "text"), [(2.30258, "2.3026"), (1.8132e27, "1.81e+27")])
def test_a_huge_loss_is_short(
    loss: float, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    figures = EvalFigures(loss=loss, accuracy=0.5, correct=1, seen=2)
    result = SimpleNamespace(**figures.model_dump(), figures=lambda: figures)
    evaluated = SimpleNamespace(result=result, calibration=SimpleNamespace(summary="none"))
    monkeypatch.setattr("pipeline.inference.evaluate_run.predict_test_set", lambda *_: evaluated)
    monkeypatch.setattr("pipeline.commands.evaluate.check_run", lambda _: None)
    assert cli.main(["evaluate", "run", "--checkpoint", "best"]) == 0
    assert capsys.readouterr().out.startswith(f"test accuracy 50.0000% (1/2), loss {text}\n")
