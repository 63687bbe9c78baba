"""Writes graph, hparams and misclassified images with Grad-CAM to TensorBoard at the end of a run."""

import copy
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.inference.predictions import Predictions
from pipeline.plotting.style import one_line, overlay

_SIDE_PX = 160
_MAX_IMAGES = 10


def write_end_of_run(
    run_folder: Path,
    model: nn.Module,
    image_size: tuple[int, int],
    step: int,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    predictions: Predictions | None,
) -> None:
    """Add an event file to `tb/` in a run folder.

    Args:
        run_folder: the run's.
        model: eager, not wrapped; it is copied to the CPU and traced there.
        image_size: height and width of its input.
        step: of the images.
        hparams: every config key with its value.
        metrics: the figures to compare runs by; None is left out.
        predictions: whose shown images are written; None: no images.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_folder / "tb")) as writer:
        _write_hparams(writer, hparams, metrics, step)
        if predictions is not None:
            _write_images(writer, predictions, step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")  # which makes TensorBoard's graph of a network
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            writer.add_graph(copy.deepcopy(model).cpu().eval(), torch.zeros(1, 3, *image_size))


def _write_hparams(
    writer: Any, hparams: Mapping[str, Any], metrics: Mapping[str, float | None], step: int
) -> None:
    from torch.utils.tensorboard.summary import hparams as summaries_of

    plain = {
        key: value if isinstance(value, bool | int | float) else one_line(str(value))
        for key, value in hparams.items()
    }
    finite = {
        f"hparam/{name}": float(value)
        for name, value in metrics.items()
        if value is not None and math.isfinite(value)
    }
    for summary in summaries_of(plain, finite):
        writer.file_writer.add_summary(summary)
    for name, value in finite.items():
        writer.add_scalar(name, value, step)


def _write_images(writer: Any, predictions: Predictions, step: int) -> None:
    mistakes = [i for i, sample in enumerate(predictions.shown) if predictions.rank[sample]]
    for number, i in enumerate(mistakes[:_MAX_IMAGES], 1):
        sample = predictions.shown[i]
        true, predicted = (
            re.sub(r"[^\w.+-]+", "_", one_line(str(predictions.class_names[label[sample]])))
            for label in (predictions.labels, predictions.predicted)
        )
        share = min(round(100 * float(predictions.confidence[sample])), 99)  # a mistake is never certain
        caption = f"{number:02d}_true_{true}_predicted_{predicted}_{share}_percent"
        writer.add_image(f"misclassified/{caption}", predictions.images[i], step, dataformats="HWC")
        if i < len(predictions.maps):
            drawn = overlay(predictions.images[i], predictions.maps[i].astype(np.float32) / 255, _SIDE_PX)
            writer.add_image(f"grad_cam/{caption}", drawn, step, dataformats="HWC")
