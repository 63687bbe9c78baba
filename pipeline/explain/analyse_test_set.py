"""Predicts the whole test set, and explains the images that a reader should look at first."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.explain import select_images
from pipeline.explain.explain_model import explain_samples
from pipeline.inference.predictions import Predictions
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.plotting.style import one_line

_log = logging.getLogger(__name__)

SHOWN_IMAGES = 20


def examine(trained: Trained, *, count: int = SHOWN_IMAGES, explain: bool = True) -> Predictions:
    """Predict every test image, select those that a reader should look at, and make their saliency maps.

    Args:
        trained: the network and the data set.
        count: images to select: confident mistakes, then the right predictions of the lowest confidence.
        explain: make Grad-CAM maps, which takes some seconds to import. A network without a layer for them
            gets a warning.
    """
    logits, test = trained.test_logits(), trained.test
    shown = select_images(logits, test.labels, count)
    images = test.pixels(shown)
    maps = np.empty((0, *images.shape[1:3]), np.uint8)
    if explain:
        try:
            maps = np.round(255 * explain_samples(trained, shown.tolist()).found.maps).astype(np.uint8)
        except UserError as error:  # such as for a vision transformer, whose predictions are still wanted
            _log.warning("no maps: %s", error)
    names = ["" if test.sample_paths is None else one_line(test.sample_paths[i]) for i in shown]
    predictions = Predictions.of(logits, test.labels, trained.inputs.class_names)
    return replace(predictions, shown=shown, shown_names=np.array(names, np.str_), images=images, maps=maps)


def refresh(path: Path) -> None:
    """Predict and explain again with a run's last checkpoint, and save the predictions.

    Raises:
        UserError: no such run, no intact checkpoint, or no data set.
    """
    trained = load_trained(path)
    assert trained.run is not None
    examine(trained).save(trained.run.path)
