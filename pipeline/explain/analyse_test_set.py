"""What a trained network says of the test set, and where it looks in the images that it gets most wrong."""

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
    """Predict every test image, choose those worth a look, and map the evidence in them.

    Args:
        trained: the network and the data set.
        count: images to choose: confident mistakes, then the least sure of the right ones.
        explain: make Grad-CAM maps, which takes some seconds to import. A network that has no layer for them gets none, with a warning.
    """
    logits, test = trained.test_logits(), trained.splits.test
    shown = select_images(logits, test.labels, count)
    images = test.pixels(shown)
    maps = np.empty((0, *images.shape[1:3]), np.uint8)
    if explain:
        try:
            maps = np.round(255 * explain_samples(trained, shown.tolist()).found.maps).astype(np.uint8)
        except UserError as error:  # as of a vision transformer: what it predicts is no less worth knowing
            _log.warning("no maps: %s", error)
    names = ["" if test.sample_paths is None else one_line(test.sample_paths[i]) for i in shown]
    whole = Predictions.of(logits, test.labels, trained.splits.class_names)
    return replace(whole, shown=shown, shown_names=np.array(names, np.str_), images=images, maps=maps)


def refresh(path: Path) -> None:
    """Predict and explain again by a run's last checkpoint, as at the end of a run, and save the predictions.

    Raises:
        UserError: no such run, no intact checkpoint, or no data set.
    """
    trained = load_trained(path)
    assert trained.run is not None
    examine(trained).save(trained.run.path)
