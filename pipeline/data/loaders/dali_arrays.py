"""Loads images in memory with DALI: crop, flip, Cutout, normalisation, on the GPU or DALI's CPU backend.

The time of the DALI graph is linear in the batch. In DALI 2.4 `crop_mirror_normalize`, `crop` and `flip` take
quadratic time if an argument differs per sample. So one `warp_affine` does crop and flip (nearest neighbour,
integer offsets: an exact copy of pixels), `erase` does Cutout, and `crop_mirror_normalize` has fixed
arguments. It returns HWC, which is channels_last if read as NCHW.

Brightness and contrast differ per sample. They are one sum and one product of the normalised float32 images
with a number per sample, which take linear time too. `erase` then comes after them, so that the Cutout box
keeps its fill, and the cast to float16 is last. `brightness_contrast` would do both in one operator, with
another rounding.

A run of a DALI pipeline costs about half a millisecond of host time for any batch size. So one run makes
several small batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_base import PipelinedLoader
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler

# One run of the pipeline makes about this many images, but no more bytes of images than this.
_GROUP_IMAGES, _GROUP_BYTES = 1024, 16 * 2**20


def crop_flip_matrices(draws: np.ndarray, padding: int, width: int) -> np.ndarray:
    """Compute the matrices that apply crop and flip, for `warp_affine(inverse_map=True)`.

    Args:
        draws: (B, 5) or (B, 7) int32, as in `PaddedCropDraws.table`.
        padding: pixels of padding, which the crop offsets include.
        width: output width in pixels. A flip maps x to width - x in DALI's coordinates, where pixel i spans
            [i, i + 1].

    Returns:
        (B, 2, 3) float32 maps from output to input pixel centres.
    """
    crop_y, crop_x, flip = draws[:, 0], draws[:, 1], draws[:, 2]
    matrices = np.zeros((len(draws), 2, 3), np.float32)
    matrices[:, 0, 0] = 1 - 2 * flip
    matrices[:, 0, 2] = crop_x - padding + width * flip
    matrices[:, 1, 1] = 1
    matrices[:, 1, 2] = crop_y - padding
    return matrices


def normalised_fill(transform: Transform) -> list[float]:
    """Return the Cutout fill of each channel after normalisation, in the float32 arithmetic of DALI."""
    mean, std = np.array(transform.mean_255, np.float32), np.array(transform.std_255, np.float32)
    fill = (np.array(transform.cutout_fill, np.float32) - mean) * (np.float32(1) / std)
    return fill.tolist()


def _reflect(images: torch.Tensor, padding: int) -> torch.Tensor:
    """Add a border of mirrored pixels to (B, H, W, C) images of any type: (B, H + 2 p, W + 2 p, C)."""
    for axis in (1, 2):
        size = images.shape[axis]
        positions = torch.arange(-padding, size + padding, device=images.device).abs()
        images = images.index_select(axis, torch.where(positions < size, positions, 2 * size - 2 - positions))
    return images


class DaliArrayLoader(PipelinedLoader):
    """Loads batches of a uint8 image set through a DALI pipeline.

    On the GPU, the images are gathered by index on the loader's own stream.

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
        images = self._pixels(fn)
        if self._augmented:
            images = self._apply_trivial_augment(self._apply_crop_and_flip(images, fn, types), fn, types)
            if self._transform.jitters:
                return self._normalise_and_jitter(images, fn, types)
            if self._transform.cutout:
                images = self._apply_cutout(images, fn, self._transform.cutout_fill)
        return self._normalise(images, fn, types)

    def _apply_crop_and_flip(self, images: Any, fn: Any, types: Any) -> Any:
        return fn.warp_affine(
            images,
            matrix=fn.external_source(name="matrices", no_copy=True),
            size=tuple(self._images.shape[1:3]),
            interp_type=types.INTERP_NN,
            fill_value=0,  # black, as in torchvision's RandomCrop. DALI's default repeats the border
            inverse_map=True,
        )

    def _normalise_and_jitter(self, images: Any, fn: Any, types: Any) -> Any:
        images = self._normalise(images, fn, types, dtype=types.FLOAT)
        shift, scale = (fn.external_source(name=name, no_copy=True) for name in ("shifts", "scales"))
        images = (images + shift) * scale
        if self._transform.cutout:
            images = self._apply_cutout(images, fn, normalised_fill(self._transform))
        return fn.cast(images, dtype=types.FLOAT16) if self._transform.dtype == torch.float16 else images

    def _apply_cutout(self, images: Any, fn: Any, fill: Sequence[float]) -> Any:
        return fn.erase(
            images,
            anchor=fn.external_source(name="anchors", no_copy=True),
            shape=[float(self._transform.cutout)] * 2,
            axis_names="HW",
            fill_value=fill,
        )

    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        if self._images.device == self._device:
            images = self._images.index_select(0, on_device)
        else:
            images = self._to_device(self._images.index_select(0, torch.from_numpy(indices)))
        padding = self._transform.crop_padding
        if self._augmented and self._transform.reflect:
            images, padding = _reflect(images, padding), 0  # the crop is inside the larger image
        keep_alive: list[Any] = [images]
        self._feed_pixels(images)
        if self._augmented:
            draws = np.concatenate([plan.draws for plan in plans if plan.draws is not None])
            matrices = crop_flip_matrices(draws, padding, self._images.shape[2])
            size = self._images.shape[1], self._images.shape[2]
            inputs = {"matrices": matrices, **self._trivial_augment_inputs(draws, size)}
            if self._transform.cutout:
                inputs["anchors"] = draws[:, 3:5].astype(np.float32)
            if self._transform.jitters:
                inputs["shifts"], inputs["scales"] = self._transform.jitter_of(draws)
            for name, values in inputs.items():
                self._pipe.feed_input(name, values)
                keep_alive.append(values)
        return keep_alive
