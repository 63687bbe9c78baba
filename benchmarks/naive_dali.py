"""The DALI graph that one writes first, to show why that of `pipeline/data/dali.py` is another: the same pixels, in quadratic time."""

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

from pipeline.data import Batch, Transform
from pipeline.data.base import PositionedLoader
from pipeline.data.sampling import BatchPlan, Sampler, plans_from


class NaiveDaliLoader(PositionedLoader):
    """Crop, mirror and normalise in one `crop_mirror_normalize` with arguments for each sample, behind an `erase` for Cutout.

    The images are padded beforehand, all at once, and kept on the device: what is timed is the graph.

    Args:
        images: (N, H, W, C) uint8.
        labels: (N,) int64.
        sampler, transform: as for `DaliLoader`.
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
        super().__init__(sampler)
        padding = transform.crop_padding
        self._size = images.shape[1:3]
        self._images = functional.pad(images.to(device), (0, 0, padding, padding, padding, padding))
        self._labels = labels.to(device)
        self._transform, self._device = transform, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._num_threads, self._prefetch = num_threads, prefetch
        self._pipe: Any = None
        self._plans: Iterator[BatchPlan] = iter(())
        self._in_flight: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
        self._fed: deque[list[Any]] = deque(maxlen=prefetch + 2)  # DALI reads a fed buffer until its batch has been delivered

    def _build(self) -> Any:
        os.environ.setdefault("DALI_DISABLE_NVML", "1")  # as the loader of the pipeline
        from nvidia.dali import Pipeline, fn
        from nvidia.dali import types as dali_types

        types: Any = dali_types  # its members are made at run time
        transform, gpu = self._transform, self._stream is not None
        pipe = Pipeline(
            batch_size=self._sampler.local_batch_size,
            num_threads=self._num_threads,
            device_id=self._device.index if gpu else None,
            prefetch_queue_depth=self._prefetch,
            exec_dynamic=True,
        )
        with pipe:
            images = fn.external_source(name="images", device="gpu" if gpu else "cpu", layout="HWC", no_copy=not gpu)
            if transform.cutout:
                # before the crop, so in the padded image's coordinates: erase on the GPU takes no half precision
                box = [float(transform.cutout)] * 2
                anchors = fn.external_source(name="anchors", no_copy=True)
                images = fn.erase(images, anchor=anchors, shape=box, axis_names="HW", fill_value=transform.cutout_fill)
            images = fn.crop_mirror_normalize(
                images,
                crop=tuple(self._size),
                crop_pos_x=fn.external_source(name="x", no_copy=True),
                crop_pos_y=fn.external_source(name="y", no_copy=True),
                mirror=fn.external_source(name="mirror", no_copy=True),
                mean=transform.mean_255,
                std=transform.std_255,
                dtype=types.FLOAT16 if transform.dtype == torch.float16 else types.FLOAT,
                output_layout="HWC",
            )
            pipe.set_outputs(images)
        pipe.build()
        return pipe

    def _restart(self, epoch: int, step: int) -> None:
        self._pipe = None
        self._in_flight.clear()
        self._pipe = self._build()
        self._plans = plans_from(self._sampler, epoch, step)
        for _ in range(self._pipe.input_feed_count("images")):
            self._feed()
        self._pipe.schedule_run()

    def _feed(self) -> None:
        plan = next(self._plans)
        assert plan.draws is not None, "this loader is for training"
        with torch.cuda.stream(self._stream):
            indices = self._to_device(torch.from_numpy(np.ascontiguousarray(plan.indices)))
            valid = self._to_device(torch.from_numpy(plan.valid))
            images, labels = self._images.index_select(0, indices), self._labels.index_select(0, indices)
        fed = {"images": images if self._stream else images.numpy(), **arguments_of(plan.draws, self._transform, self._size[1])}
        for name, values in fed.items():
            self._pipe.feed_input(name, values, **({"layout": "HWC", "cuda_stream": self._stream} if name == "images" else {}))
        self._fed.append([images, fed])
        self._in_flight.append((labels, valid, indices))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._stream is None else tensor.pin_memory().to(self._device, non_blocking=True)

    def _next(self) -> Batch:
        gathering = self._stream
        current = torch.cuda.current_stream(self._device) if gathering is not None else None
        (output,) = self._pipe.share_outputs(cuda_stream=current)
        images = torch.from_dlpack(output.as_tensor())
        self._pipe.release_outputs()
        labels, valid, indices = self._in_flight.popleft()
        if current is not None and gathering is not None:
            current.wait_stream(gathering)
            for tensor in (labels, valid, indices):
                tensor.record_stream(current)
        self._feed()
        self._pipe.schedule_run()
        images = rearrange(images, "b h w c -> b c h w").contiguous(memory_format=self._transform.memory_format)
        return Batch(images, labels, valid, indices)


def arguments_of(draws: np.ndarray, transform: Transform, width: int) -> dict[str, np.ndarray]:
    """The graph's arguments for each sample: `x`, `y` (crop, as shares of the slack), `mirror`, and `anchors` where there is a box.

    Args:
        draws: (B, 5) int32, as `EpochDraws.table`.
        width: of the output, in pixels.
    """
    crop_y, crop_x, flip, box_y, box_x = draws.T
    slack = max(2 * transform.crop_padding, 1)
    arguments = {"x": (crop_x / slack).astype(np.float32), "y": (crop_y / slack).astype(np.float32), "mirror": flip.astype(np.int32)}
    if transform.cutout:
        unflipped = np.where(flip, width - transform.cutout - box_x, box_x)
        arguments["anchors"] = np.stack([crop_y + box_y, crop_x + unflipped], axis=1).astype(np.float32)
    return arguments
