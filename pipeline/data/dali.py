"""The DALI loader: crop, flip, Cutout and normalisation on the GPU, or on DALI's CPU backend where there is none.

The graph is linear in the batch. `crop_mirror_normalize`, `crop` and `flip` with an argument per sample take time quadratic in the
batch (DALI 2.4), so crop and flip ride in one `warp_affine` (nearest neighbour, integer offsets: an exact copy of pixels), Cutout
in `erase`, and `crop_mirror_normalize` has fixed arguments. It emits HWC, which read as NCHW *is* channels_last.

A run of a DALI pipeline costs about half a millisecond of host time whatever the batch, so small batches are made several at a time.
"""

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from einops import rearrange

from pipeline.data.base import PositionedLoader, Transform
from pipeline.data.batch import Batch
from pipeline.data.sampling import BatchPlan, Sampler, plans_from

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


class DaliLoader(PositionedLoader):
    """Batches of a uint8 image set, through a DALI pipeline.

    On the GPU everything is enqueued: the images are gathered by index on a stream of the loader's own, DALI runs on its
    own, and the outputs are handed to torch's current stream without a copy and without the host waiting for them.

    Args:
        images: (N, H, W, C) uint8, on `device` or, for a set that does not fit there, in host memory.
        labels: (N,) int64, on `device`.
        sampler: which samples stand in which batch.
        transform: normalisation, padding, Cutout, type and layout.
        device: a CUDA device, or the CPU for DALI's CPU backend.
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
        num_threads: int = 4,
        prefetch: int = 3,
    ):
        super().__init__(sampler)
        self._images, self._labels, self._device = images, labels, device
        self._transform = transform
        self._augmented = sampler.plan(0, 0).draws is not None
        self._num_threads = num_threads
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batch_size = sampler.local_batch_size
        group_images = min(_GROUP_IMAGES, _GROUP_BYTES // images[0].nbytes)
        self._group = max(min(group_images // self._batch_size, self.steps_per_epoch), 1)
        self._prefetch = max(-(-prefetch // self._group), min(prefetch, 2))
        self._pipe: Any = None
        self._plans: Iterator[BatchPlan] = iter(())
        self._in_flight: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
        self._ready: deque[Batch] = deque()
        # DALI reads a fed buffer until its batch has been delivered: keep the newest ones alive
        self._fed: deque[list[Any]] = deque(maxlen=self._prefetch + 2)

    def _build(self) -> Any:
        os.environ.setdefault("DALI_DISABLE_NVML", "1")  # no thread affinity by NVML: it warns in containers
        from nvidia.dali import Pipeline, fn
        from nvidia.dali import types as dali_types

        types: Any = dali_types  # its members are made at run time
        transform, gpu = self._transform, self._stream is not None
        height, width = self._images.shape[1:3]
        device = "gpu" if gpu else "cpu"
        pipe = Pipeline(
            batch_size=self._group * self._batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index if gpu else None,
            prefetch_queue_depth=self._prefetch,
            exec_dynamic=True,
        )
        with pipe:
            images = fn.external_source(name="images", device=device, layout="HWC", no_copy=True)
            if self._augmented:
                matrices = fn.external_source(name="matrices", no_copy=True)
                # left out, fill_value means "repeat the border"; torchvision's RandomCrop pads with black
                images = fn.warp_affine(
                    images, matrix=matrices, size=(height, width), interp_type=types.INTERP_NN, fill_value=0, inverse_map=True
                )
                if transform.cutout:
                    anchors = fn.external_source(name="anchors", no_copy=True)
                    box = [float(transform.cutout)] * 2
                    images = fn.erase(images, anchor=anchors, shape=box, axis_names="HW", fill_value=transform.cutout_fill)
            images = fn.crop_mirror_normalize(
                images,
                mean=transform.mean_255,
                std=transform.std_255,
                dtype=types.FLOAT16 if transform.dtype == torch.float16 else types.FLOAT,
                output_layout="HWC",
            )
            pipe.set_outputs(images)
        pipe.build()
        return pipe

    def _restart(self, epoch: int, step: int) -> None:
        # an external source cannot be rewound; a new pipeline takes tens of milliseconds
        self._pipe = None
        self._in_flight.clear()
        self._ready.clear()
        self._pipe = self._build()
        self._plans = plans_from(self._sampler, epoch, step)
        for _ in range(self._pipe.input_feed_count("images")):
            self._feed()
        self._pipe.schedule_run()

    def _feed(self) -> None:
        """Give DALI the images and draws of the next plans, all in one place, so that they cannot get out of step."""
        plans = list(islice(self._plans, self._group))
        width, stream = self._images.shape[2], self._stream
        with torch.cuda.stream(stream):
            host_indices = torch.from_numpy(np.concatenate([plan.indices for plan in plans]))
            indices = self._to_device(host_indices)
            valid = self._to_device(torch.from_numpy(np.concatenate([plan.valid for plan in plans])))
            if self._images.device == self._device:
                images = self._images.index_select(0, indices)
            else:
                images = self._to_device(self._images.index_select(0, host_indices))
            labels = self._labels.index_select(0, indices)
        keep: list[Any] = [images]
        # DALI asks CUDA for the stream of any torch tensor: on the CPU backend it gets numpy
        self._pipe.feed_input("images", images if stream else images.numpy(), layout="HWC", cuda_stream=stream)
        if self._augmented:
            draws = np.concatenate([plan.draws for plan in plans if plan.draws is not None])
            matrices = crop_flip_matrices(draws, self._transform.crop_padding, width)
            self._pipe.feed_input("matrices", matrices)
            keep.append(matrices)
            if self._transform.cutout:
                anchors = draws[:, 3:5].astype(np.float32)
                self._pipe.feed_input("anchors", anchors)
                keep.append(anchors)
        self._fed.append(keep)
        self._in_flight.append((labels, valid, indices))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is None:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _next(self) -> Batch:
        if not self._ready:
            self._take_group()
        return self._ready.popleft()

    def _take_group(self) -> None:
        current = torch.cuda.current_stream(self._device) if self._stream is not None else None
        (output,) = self._pipe.share_outputs(cuda_stream=current)
        images = torch.from_dlpack(output.as_tensor())
        self._pipe.release_outputs()
        labels, valid, indices = self._in_flight.popleft()
        if current is not None and self._stream is not None:
            current.wait_stream(self._stream)
            for tensor in (labels, valid, indices):
                tensor.record_stream(current)
        self._feed()
        self._pipe.schedule_run()
        images = rearrange(images, "b h w c -> b c h w").contiguous(memory_format=self._transform.memory_format)
        parts = (tensor.split(self._batch_size) for tensor in (images, labels, valid, indices))
        self._ready.extend(Batch(*part) for part in zip(*parts, strict=True))
