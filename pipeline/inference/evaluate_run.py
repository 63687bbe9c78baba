"""Evaluates a finished run again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.inference.trained_model import load_trained
from pipeline.run.checkpoint import EMA, load_weights
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.precision import Precision


def evaluate_run(path: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> EvalResult:
    """Evaluate a run's checkpoint on the test set, and the moving average if it holds one.

    The precision is that of the training. No training image is read.
    """
    trained = load_trained(path, which, overrides)
    assert trained.checkpoint is not None
    loader = trained.test_loader(trained.config)
    precision = Precision(trained.config.precision, trained.device)
    settings = (loader, precision, trained.device, trained.config.evaluation.test_views)
    result = evaluate(trained.model, *settings)
    if not (trained.checkpoint / EMA).is_file():
        return result
    trained.model.load_state_dict(load_weights(trained.checkpoint, EMA))
    return replace(result, ema=evaluate(trained.model, *settings))
