"""Writes the graph of the network and HPARAMS to TensorBoard at the end of a run."""

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pipeline.plotting.style import one_line
from pipeline.run.folder import RunFolder


def write_end_of_run(
    run: RunFolder,
    model: nn.Module,
    image_size: tuple[int, int],
    step: int,
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float | None],
) -> None:
    """Add an event file to `tb/` in a run folder.

    Args:
        run: the run folder.
        model: eager, not wrapped; it is copied to the CPU and traced there.
        image_size: height and width of its input.
        step: of the metrics.
        hparams: the config keys that HPARAMS shows, with their values.
        metrics: the figures to compare runs by; None is left out.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run.tensorboard)) as writer:
        _write_hparams(writer, hparams, metrics, step)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit")  # which makes TensorBoard's graph of a network
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", "The input to trace is already a ScriptModule")
            network, images = copy.deepcopy(model).cpu().eval(), torch.zeros(1, 3, *image_size)
            # `add_graph` would trace twice and compare the names, which differ for speednet94 and 96
            writer.add_graph(torch.jit.trace(network, images, check_trace=False), images)


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
