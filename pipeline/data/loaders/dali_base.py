"""Holds the parts that the DALI loaders share: feeding a pipeline, and taking its batches without a copy."""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from einops import rearrange

from pipeline.data.batch import Batch
from pipeline.data.loaders import dali_trivial_augment
from pipeline.data.loaders.base import PositionedLoader, Transform
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler, plans_from


class PipelinedLoader(PositionedLoader):
    """Base of the DALI loaders.

    On the GPU, the host only enqueues work. torch prepares the inputs on the loader's own stream, DALI works
    on its own stream, and the outputs go to torch's current stream without a copy. The host does not wait for
    them.

    Args:
        labels: (N,) int64, on `device`.
        sampler: the samples of each batch.
        transform: type and layout, among others.
        device: a CUDA device, or the CPU for DALI's CPU backend.
        num_threads: DALI's CPU threads.
        prefetch: batches prepared in advance.
        group: batches made by one run of the pipeline.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_threads: int,
        prefetch: int,
        group: int = 1,
    ):
        super().__init__(sampler)
        self._labels, self._transform, self._device = labels, transform, device
        # `sampler.plan` could tell the same, but would draw an epoch, which takes time; a resumed run needs
        # another one
        self._augmented = sampler.augmented
        self._num_threads = num_threads
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._batch_size, self._group = sampler.local_batch_size, group
        self._prefetch = max(-(-prefetch // group), min(prefetch, 2))
        self._seed = 0  # of the random operators of DALI
        self._conditional = self._augmented and transform.trivial_augment  # True if the graph has branches
        self._pipe: Any = None
        self._plans: Iterator[BatchPlan] = iter(())
        self._in_flight: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque()
        self._ready: deque[Batch] = deque()
        # DALI reads an input buffer until its batch was delivered: keep the newest buffers alive
        self._fed: deque[list[Any]] = deque(maxlen=self._prefetch + 2)

    @abstractmethod
    def _define(self, fn: Any, types: Any) -> Any:
        """Define the graph of the pipeline and return its output (HWC). `images` is an external source."""

    @abstractmethod
    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        """Feed every external source for these batches.

        Args:
            plans: of the batches.
            indices: sample ids of all batches.
            on_device: the same ids, on `device`.

        Returns:
            The buffers that DALI reads later: they must be kept alive.
        """

    def _build(self) -> Any:
        return self._pipeline(
            self._define,
            enable_conditionals=self._conditional,
            batch_size=self._group * self._batch_size,
            num_threads=self._num_threads,
            prefetch_queue_depth=self._prefetch,
            seed=self._seed,
        )

    def _pipeline(
        self, define: Callable[[Any, Any], Any], enable_conditionals: bool = False, **options: Any
    ) -> Any:
        """Build a pipeline on the loader's device from a graph; DEFINE is a function like `_define`."""
        os.environ.setdefault("DALI_DISABLE_NVML", "1")  # no thread affinity by NVML: it warns in containers
        from nvidia import dali
        from nvidia.dali import fn, types

        define_pipeline: Any = dali.pipeline_def  # the decorated function also takes the pipeline's arguments

        @define_pipeline(enable_conditionals=enable_conditionals, exec_dynamic=True)
        def graph() -> Any:
            return define(fn, types)

        pipe = graph(device_id=self._device.index if self._stream is not None else None, **options)
        pipe.build()
        return pipe

    def _pixels(self, fn: Any) -> Any:
        """Define the external source `images` for the gathered images of `_feed_pixels`.

        On the GPU, DALI copies the images on the stream that it is given. Without the copy it does not wait
        for that stream.
        """
        on_gpu = self._stream is not None
        return fn.external_source(
            name="images", device="gpu" if on_gpu else "cpu", layout="HWC", no_copy=not on_gpu
        )

    def _feed_pixels(self, images: torch.Tensor) -> None:
        # DALI asks CUDA for the stream of every torch tensor, so the CPU backend is given a numpy array
        pixels = images if self._stream else images.numpy()
        self._pipe.feed_input("images", pixels, layout="HWC", cuda_stream=self._stream)

    def _normalise(self, images: Any, fn: Any, types: Any, **options: Any) -> Any:
        """Define the operator that normalises. Its HWC output, read as NCHW, is channels_last.

        Args:
            images: its input.
            fn, types: DALI's modules.
            options: more arguments of the operator, or another `dtype` than the transform's.
        """
        transform = self._transform
        dtype = types.FLOAT16 if transform.dtype == torch.float16 else types.FLOAT
        return fn.crop_mirror_normalize(
            images,
            mean=transform.mean_255,
            std=transform.std_255,
            output_layout="HWC",
            **{"dtype": dtype, **options},
        )

    def _apply_trivial_augment(self, images: Any, fn: Any, types: Any) -> Any:
        """Define the operators of TrivialAugment, if it is switched on."""
        if not self._transform.trivial_augment:
            return images
        sources = {name: fn.external_source(name=name, no_copy=True) for name in dali_trivial_augment.INPUTS}
        return dali_trivial_augment.apply(images, sources, self._stream is not None, fn, types)

    def _trivial_augment_inputs(self, draws: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Return what to feed to these operators, for images of SIZE."""
        return dali_trivial_augment.inputs_of(draws[:, -2:], size) if self._transform.trivial_augment else {}

    def _restart(self, epoch: int, step: int) -> None:
        # an external source cannot be rewound, so a new pipeline is built, which takes tens of milliseconds
        self._pipe = None
        self._in_flight.clear()
        self._ready.clear()
        self._pipe = self._build()
        self._plans = plans_from(self._sampler, epoch, step)
        for _ in range(self._pipe.input_feed_count("images")):
            self._feed()
        self._pipe.schedule_run()

    def _feed(self) -> None:
        """Feed all inputs of the next plans, in one place, so that all are of the same batches."""
        plans = list(islice(self._plans, self._group))
        with torch.cuda.stream(self._stream):
            host_indices = np.concatenate([plan.indices for plan in plans])
            indices = self._to_device(torch.from_numpy(host_indices))
            valid = self._to_device(torch.from_numpy(np.concatenate([plan.valid for plan in plans])))
            labels = self._labels.index_select(0, indices)
            self._fed.append(self._feed_inputs(plans, host_indices, indices))
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
        images = rearrange(images, "b h w c -> b c h w").contiguous(
            memory_format=self._transform.memory_format
        )
        parts = (tensor.split(self._batch_size) for tensor in (images, labels, valid, indices))
        self._ready.extend(Batch(*part) for part in zip(*parts, strict=True))
