"""Evaluates a finished run or shipped weights again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.inference.trained_model import Trained, load_trained
from pipeline.run.checkpoint import EMA, load_weights
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.precision import Precision


def evaluate_run(path: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> EvalResult:
    """Evaluate a run's checkpoint on the test set, and the moving average if it holds one.

    The precision is that of the training; no training image is read. Shipped weights, by their name in place
    of the run folder, compute in float32.
    """
    trained = load_trained(path, which, overrides)
    result = evaluate_trained(trained)
    if trained.checkpoint is None or not (trained.checkpoint / EMA).is_file():
        return result
    trained.model.load_state_dict(load_weights(trained.checkpoint, EMA))
    return replace(result, ema=evaluate_trained(trained))


def evaluate_trained(trained: Trained) -> EvalResult:
    """Evaluate a network on the test set of its config, in the precision of its config."""
    loader = trained.test_loader(trained.config)
    precision = Precision(trained.config.precision, trained.device)
    return evaluate(trained.model, loader, precision, trained.device, trained.config.evaluation.test_views)
