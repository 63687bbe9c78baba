"""Augments with DALI as many pipelines do, at quadratic cost.

`data/loaders/dali_arrays.py` gives the same pixels without that cost.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pipeline.data import Transform
from pipeline.data.loaders.dali_base import PipelinedLoader
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler


class NaiveDaliLoader(PipelinedLoader):
    """Crops, mirrors and normalises in one `crop_mirror_normalize` with arguments for each sample.

    `erase` before it is Cutout. Brightness and contrast stay as they are.
    All images are padded beforehand and kept on the device, so that only the graph is timed.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
        sampler, transform: as for `DaliArrayLoader`.
        device: a CUDA device, or the CPU.
        num_threads: DALI's CPU threads.
        prefetch: batches prepared ahead.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_threads: int,
        prefetch: int,
    ):
        super().__init__(labels.to(device), sampler, transform, device, num_threads, prefetch)
        assert self._augmented, "this loader is for training"
        padding = transform.crop_padding
        self._size = images.shape[1:3]
        self._images = functional.pad(images.to(device), (0, 0, padding, padding, padding, padding))

    def _define(self, fn: Any, types: Any) -> Any:
        transform, images = self._transform, self._pixels(fn)
        if transform.cutout:
            # before the crop, so in the padded image's coordinates: erase on the GPU takes no half precision
            box = [float(transform.cutout)] * 2
            anchors = fn.external_source(name="anchors", no_copy=True)
            images = fn.erase(
                images, anchor=anchors, shape=box, axis_names="HW", fill_value=transform.cutout_fill
            )
        return self._normalise(
            images,
            fn,
            types,
            crop=tuple(self._size),
            crop_pos_x=fn.external_source(name="x", no_copy=True),
            crop_pos_y=fn.external_source(name="y", no_copy=True),
            mirror=fn.external_source(name="mirror", no_copy=True),
        )

    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        (plan,) = plans
        assert plan.draws is not None
        images = self._images.index_select(0, on_device)
        self._feed_pixels(images)
        arguments = arguments_of(plan.draws, self._transform, self._size[1])
        for name, values in arguments.items():
            self._pipe.feed_input(name, values)
        return [images, arguments]


def arguments_of(draws: np.ndarray, transform: Transform, width: int) -> dict[str, np.ndarray]:
    """Return the graph's arguments for each sample.

    They are `x`, `y` (crop, as fractions of the slack), `mirror`, and `anchors` if there is a box.

    Args:
        draws: (B, 5) or (B, 7) int32, as `PaddedCropDraws.table`.
        width: of the output, in pixels.
    """
    crop_y, crop_x, flip, box_y, box_x = draws[:, :5].T
    slack = max(2 * transform.crop_padding, 1)
    arguments = {
        "x": (crop_x / slack).astype(np.float32),
        "y": (crop_y / slack).astype(np.float32),
        "mirror": flip.astype(np.int32),
    }
    if transform.cutout:
        unflipped = np.where(flip, width - transform.cutout - box_x, box_x)
        arguments["anchors"] = np.stack([crop_y + box_y, crop_x + unflipped], axis=1).astype(np.float32)
    return arguments
