"""Evaluates a finished run or shipped weights again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.errors import Stopped
from pipeline.inference.calibration import Calibration, calibrate
from pipeline.inference.prediction_table import PredictionTable
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.run.checkpoint import EMA, load_weights
from pipeline.training.evaluate import EvalResult, Seen, evaluate
from pipeline.training.precision import Precision


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An evaluation with the predictions that it counted.

    Attributes:
        trained: the network.
        result: the counts.
        logits: (N, K) float32, of one view of each test image in the order of the test set.
        labels: (N,) int64, the true classes.
    """

    trained: Trained
    result: EvalResult
    logits: np.ndarray
    labels: np.ndarray

    @property
    def calibration(self) -> Calibration:
        """Measure the calibration, of the weights and the view that `result.accuracy` is of."""
        return calibrate(self.logits, self.labels)

    @property
    def table(self) -> PredictionTable:
        """Return the predictions of the test set with file names and the probabilities of all classes."""
        paths = self.trained.test.sample_paths
        files = [""] * len(self.labels) if paths is None else [str(path) for path in paths]
        return PredictionTable(files, self.trained.inputs.class_names, self.logits, self.labels)


def evaluate_run(path: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> EvalResult:
    """Evaluate a run's checkpoint on the test set, and the moving average if it holds one.

    The precision is that of the training; no training image is read. Shipped weights, by their name in place
    of the run folder, compute in float32.
    """
    return predict_test_set(path, which, overrides).result


def predict_test_set(path: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> Evaluated:
    """Evaluate as `evaluate_run`, and return the predictions of the raw weights as well.

    Raises:
        Stopped: Ctrl-C, after some images; its `partial` is a sentence on them.
    """
    trained = load_trained(path, which, overrides)
    seen = Seen()
    try:
        result = evaluate_trained(trained, seen)
    except KeyboardInterrupt:
        if not seen.parts:
            raise
        raise Stopped(_describe_part(seen, len(trained.test))) from None
    if trained.checkpoint is not None and (trained.checkpoint / EMA).is_file():
        raw = trained.model.state_dict()
        raw = {name: value.clone() for name, value in raw.items()}
        trained.model.load_state_dict(load_weights(trained.checkpoint, EMA))
        result = replace(result, ema=evaluate_trained(trained))
        trained.model.load_state_dict(raw)
    return Evaluated(trained, result, *seen.in_order())


def _describe_part(seen: Seen, total: int) -> str:
    logits, labels = seen.in_order()
    right = int((logits.argmax(axis=1) == labels).sum())
    return (
        f"stopped after {len(labels):,} of {total:,} test images; of these, {right:,} are right "
        f"({right / len(labels):.2%}, one view)"
    )


def evaluate_trained(trained: Trained, seen: Seen | None = None) -> EvalResult:
    """Evaluate a network on the test set of its config, in the precision of its config.

    Args:
        trained: the network.
        seen: remembers the logits of every image.
    """
    loader = trained.test_loader(trained.config)
    precision = Precision(trained.config.precision, trained.device)
    views = trained.config.evaluation.test_views
    return evaluate(trained.model, loader, precision, trained.device, views, seen=seen)
