"""The DALI loader: crop, flip, Cutout and normalisation on the GPU, or on DALI's CPU backend where there is none.

The graph is linear in the batch. `crop_mirror_normalize`, `crop` and `flip` with an argument per sample take time quadratic in the
batch (DALI 2.4), so crop and flip ride in one `warp_affine` (nearest neighbour, integer offsets: an exact copy of pixels), Cutout
in `erase`, and `crop_mirror_normalize` has fixed arguments. It emits HWC, which read as NCHW *is* channels_last.

A run of a DALI pipeline costs about half a millisecond of host time whatever the batch, so small batches are made several at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_base import PipelinedLoader
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler

# One run of the pipeline makes about this many images, if they are no larger in all than this.
_GROUP_IMAGES, _GROUP_BYTES = 1024, 16 * 2**20


def crop_flip_matrices(draws: np.ndarray, padding: int, width: int) -> np.ndarray:
    """(B, 2, 3) float32 maps from output to input pixel centres, for `warp_affine(inverse_map=True)`.

    Args:
        draws: (B, 5) int32, as `EpochDraws.table`.
        padding: pixels of padding that the crop offsets count from.
        width: output width in pixels; a flip maps x to width - x in DALI's coordinates, where pixel i spans [i, i + 1].
    """
    crop_y, crop_x, flip = draws[:, 0], draws[:, 1], draws[:, 2]
    matrices = np.zeros((len(draws), 2, 3), np.float32)
    matrices[:, 0, 0] = 1 - 2 * flip
    matrices[:, 0, 2] = crop_x - padding + width * flip
    matrices[:, 1, 1] = 1
    matrices[:, 1, 2] = crop_y - padding
    return matrices


class DaliLoader(PipelinedLoader):
    """Batches of a uint8 image set, through a DALI pipeline.

    On the GPU the images are gathered by index on a stream of the loader's own.

    Args:
        images: (N, H, W, C) uint8, on `device` or, for a set that does not fit there, in host memory.
        labels, sampler, device, num_threads, prefetch: as for `PipelinedLoader`.
        transform: normalisation, padding, Cutout, type and layout.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_threads: int = 4,
        prefetch: int = 3,
    ):
        group_images = min(_GROUP_IMAGES, _GROUP_BYTES // images[0].nbytes)
        group = max(min(group_images // sampler.local_batch_size, sampler.steps_per_epoch), 1)
        super().__init__(labels, sampler, transform, device, num_threads, prefetch, group)
        self._images = images

    def _define(self, fn: Any, types: Any) -> Any:
        transform = self._transform
        height, width = self._images.shape[1:3]
        images = self._pixels(fn)
        if self._augmented:
            matrices = fn.external_source(name="matrices", no_copy=True)
            # left out, fill_value means "repeat the border"; torchvision's RandomCrop pads with black
            images = fn.warp_affine(
                images,
                matrix=matrices,
                size=(height, width),
                interp_type=types.INTERP_NN,
                fill_value=0,
                inverse_map=True,
            )
            if transform.cutout:
                anchors = fn.external_source(name="anchors", no_copy=True)
                box = [float(transform.cutout)] * 2
                images = fn.erase(
                    images, anchor=anchors, shape=box, axis_names="HW", fill_value=transform.cutout_fill
                )
        return self._normalise(images, fn, types)

    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        if self._images.device == self._device:
            images = self._images.index_select(0, on_device)
        else:
            images = self._to_device(self._images.index_select(0, torch.from_numpy(indices)))
        keep: list[Any] = [images]
        self._feed_pixels(images)
        if self._augmented:
            draws = np.concatenate([plan.draws for plan in plans if plan.draws is not None])
            matrices = crop_flip_matrices(draws, self._transform.crop_padding, self._images.shape[2])
            self._pipe.feed_input("matrices", matrices)
            keep.append(matrices)
            if self._transform.cutout:
                anchors = draws[:, 3:5].astype(np.float32)
                self._pipe.feed_input("anchors", anchors)
                keep.append(anchors)
        return keep
