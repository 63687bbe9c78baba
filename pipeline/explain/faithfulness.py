"""Measures whether a map shows what the network looks at: deletion and insertion by the grad-cam library.

ROAD, Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
arXiv:2202.00449: pixels are removed by filling them in from their neighbours, so that no edge of a hole gives
the class away.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.explain.contact_sheet import Explained
from pipeline.inference.trained_model import Trained
from pipeline.plotting.style import one_line

_PERCENTILES = (10, 30, 50, 70, 90)  # of the pixels; each is a sparse linear system for each image


@dataclass(frozen=True)
class Faithfulness:
    """The figures of N maps, as means over removing 10, 30, 50, 70 and 90 % of the pixels.

    Attributes:
        deletion: (N,) float32, change of the probability of the explained class if the most relevant pixels
            are removed first. The lower, the better the map.
        insertion: (N,) float32, the same if the least relevant are removed first, so that the most relevant
            are what is left. The higher, the better.
        score: (N,) float32, half of insertion less deletion, from -1 to 1. A map of chance has about 0.

    NaN where no region stands out in the map.
    """

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def score(self) -> np.ndarray:
        return (self.insertion - self.deletion) / 2

    def describe(self, sources: tuple[str, ...]) -> str:
        """Return a line for each map, and one for the mean."""
        rows = zip(sources, self.deletion, self.insertion, self.score, strict=True)
        lines = [
            f"{one_line(name)}: "
            + (_figures(*values) if np.isfinite(values).all() else "nothing stands out in its map")
            for name, *values in rows
        ]
        known = np.isfinite(self.score)
        if not known.any():
            return "\n".join(lines)
        means = (float(values[known].mean()) for values in (self.deletion, self.insertion, self.score))
        return "\n".join([*lines, f"mean of {known.sum()} (ROAD): {_figures(*means)}; chance is 0"])


def _figures(deletion: float, insertion: float, score: float) -> str:
    return f"deletion {deletion:+.3f}, insertion {insertion:+.3f}, score {score:+.3f}"


def score_maps(trained: Trained, explained: Explained) -> Faithfulness:
    """Measure the maps of a network.

    This takes about six seconds for each image of 224 pixels on one core, and far less for small ones.

    Args:
        trained: the network that was explained.
        explained: its maps, from one of the `explain` functions.
    """
    from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirstAverage, ROADMostRelevantFirstAverage
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget  # takes 13 s to import

    maps, classes = explained.found.maps, explained.found.classes
    uneven = maps.reshape(len(maps), -1).std(axis=1) > 0
    deletion, insertion = np.full((2, len(maps)), np.nan, np.float32)
    images = trained.inputs.normalise(explained.images[uneven]).to(trained.device)
    if len(images):
        targets = [ClassifierOutputSoftmaxTarget(int(label)) for label in classes[uneven]]
        given = (images, _ranks(maps[uneven]), targets, trained.model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # numpy's, of the library
            torch.manual_seed(0)  # the filled-in pixels get a little noise
            deletion[uneven] = ROADMostRelevantFirstAverage(_PERCENTILES)(*given)
            insertion[uneven] = ROADLeastRelevantFirstAverage(_PERCENTILES)(*given)
    return Faithfulness(deletion, insertion)


def _ranks(maps: np.ndarray) -> np.ndarray:
    """Return maps, (N, H, W), with the rank of each pixel in place of its value, from 0 to 1.

    Large parts of a map are 0, and the library would remove all pixels of one value or none. The order of
    equal pixels is drawn.
    """
    count = maps[0].size
    draws = np.random.default_rng(0).random(count)
    orders = np.stack([np.lexsort((draws, saliency.ravel())) for saliency in maps])
    ranks = np.empty_like(orders)
    np.put_along_axis(ranks, orders, np.arange(count)[None], axis=1)
    return (ranks / max(count - 1, 1)).astype(np.float32).reshape(maps.shape)
