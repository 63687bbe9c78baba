"""Evaluates a finished run again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data import build_loaders
from pipeline.inference.trained_model import load_trained
from pipeline.run.checkpoint import EMA, load_weights
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.precision import Precision


def evaluate_run(path: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> EvalResult:
    """Accuracy on the test set of a run's checkpoint, and of the moving average in it, in the precision that it was trained in."""
    trained = load_trained(path, which, overrides)
    assert trained.checkpoint is not None
    loader = build_loaders(trained.config, trained.splits, trained.device).test
    given = (
        loader,
        Precision(trained.config.precision, trained.device),
        trained.device,
        trained.config.evaluation.flip_tta,
    )
    result = evaluate(trained.model, *given)
    if not (trained.checkpoint / EMA).is_file():
        return result
    trained.model.load_state_dict(load_weights(trained.checkpoint, EMA))
    return replace(result, ema=evaluate(trained.model, *given))
