"""The DALI loader of images that stay in their files: read, decode, crop, resize, mirror, Cutout and normalise, on the GPU or on the CPU.

What is ours is fed, one array for a whole batch each: the paths in the order of the epoch, the boxes, the sizes. DALI reads the files in
its own threads, outside Python's lock. Everything is linear in the batch: the decoder cuts the box out (on a GPU it decodes no more than
that), `resize` mirrors where the width that it is asked for is negative, Cutout is `erase`, and `crop_mirror_normalize` has fixed
arguments.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.batch import Batch
from pipeline.data.datasets.file_set import FileSet
from pipeline.data.files.decode import images_of_any_size, open_rgb, try_all
from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_base import PipelinedLoader
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler, cutout_side
from pipeline.errors import TrainingError

_RANDAUGMENT_LEVELS = 31  # of magnitude, as in the paper


@dataclass(frozen=True)
class Photometric:
    """Augmentation that DALI draws itself: not the same after a resume, or on another number of processes.

    Attributes:
        color_jitter: as `augment.color_jitter`.
        randaugment, magnitude: as `augment.randaugment` and `augment.randaugment_magnitude`.
        seed: of DALI's draws.
    """

    color_jitter: float = 0.0
    randaugment: int = 0
    magnitude: int = 9
    seed: int = 0


@dataclass(frozen=True)
class Decoder:
    """Who decodes the files.

    Attributes:
        on_gpu: on a GPU, the GPU itself, for which it competes with the training step; else DALI's CPU threads, and the boxes are copied.
        hw_load: as `data.hw_decoder_load`.
    """

    on_gpu: bool = True
    hw_load: float = 1.0


class StreamLoader(PipelinedLoader):
    """Batches of images that stay in their files.

    Training shows a box of each image, evaluation what `FileSet.view` says. Batches may differ in their images' size.

    Args:
        files: the data set.
        labels, sampler, device, num_threads, prefetch: as for `PipelinedLoader`.
        transform: normalisation, Cutout, type and layout.
        decoder: of the files.
        photometric: what DALI draws, in training.
    """

    def __init__(
        self,
        files: FileSet,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        num_threads: int = 4,
        prefetch: int = 3,
        decoder: Decoder | None = None,
        photometric: Photometric | None = None,
    ):
        super().__init__(labels, sampler, transform, device, num_threads, prefetch)
        self._files, self._decoder = files, decoder or Decoder()
        self._decodes_on_gpu = self._decoder.on_gpu and self._stream is not None
        self._photometric = photometric or Photometric()
        self._root = os.fsencode(files.root) + b"/"
        self._conditional = self._augmented and self._photometric.randaugment > 0

    def _restart(self, epoch: int, step: int) -> None:
        # DALI begins to draw anew: not with the numbers that it has drawn elsewhere
        self._seed = (self._photometric.seed + epoch * self.steps_per_epoch + step) % 2**31
        super()._restart(epoch, step)

    def _define(self, fn: Any, types: Any) -> Any:
        def source(name: str) -> Any:
            return fn.external_source(name=name, no_copy=True)

        encoded = fn.io.file.read(source("images"))
        options = self._decoder_options()
        size = source("size")
        if not self._augmented:
            images = self._to_gpu(fn.decoders.image(encoded, **options))
            images = fn.resize(images, size=size, roi_start=source("start"), roi_end=source("end"))
            return self._normalise(images, fn, types)
        images = fn.decoders.image_slice(
            encoded, source("anchor"), source("shape"), axis_names="HW", **options
        )
        images = self._draw(fn.resize(self._to_gpu(images), size=size), fn)
        if self._transform.cutout:
            fill = self._transform.cutout_fill
            images = fn.erase(
                images,
                anchor=source("cutout"),
                shape=source("cutout_shape"),
                axis_names="HW",
                fill_value=fill,
            )
        return self._normalise(images, fn, types)

    def _decoder_options(self) -> dict[str, Any]:
        if not self._decodes_on_gpu:
            return {"device": "cpu"}
        # Loader alone on one H200 with 16 cores, at 224 and batch 512: 26,000 images/sec with all of them on the decoder unit, 24,000 with
        # nine tenths, 9,868 on the CPU; twice the prefetch added 3,000 to the 24,000, and memory for as many batches.
        # Not tied to cores (`affine`): the processes of a host would all take the same ones.
        return {
            "device": "mixed",
            "hw_decoder_load": self._decoder.hw_load,
            "affine": False,
            **_preallocation(self._files.sizes),
        }

    def _to_gpu(self, images: Any) -> Any:
        """What the CPU has decoded, where the rest is done."""
        return images.gpu() if self._stream is not None and not self._decodes_on_gpu else images

    def _draw(self, images: Any, fn: Any) -> Any:
        """What DALI draws itself."""
        drawn = self._photometric
        if drawn.color_jitter:
            change = (1 - drawn.color_jitter, 1 + drawn.color_jitter)
            factors = {
                name: fn.random.uniform(range=change) for name in ("brightness", "contrast", "saturation")
            }
            images = fn.color_twist(images, **factors)
        if drawn.randaugment:
            from nvidia.dali.auto_aug.rand_augment import rand_augment

            with warnings.catch_warnings(
                record=True
            ):  # DALI warns of its own use of older names, whatever the filters say
                images = rand_augment(
                    images, n=drawn.randaugment, m=drawn.magnitude, num_magnitude_bins=_RANDAUGMENT_LEVELS
                )
        return images

    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        (plan,) = plans
        size = np.full((len(indices), 2), plan.image_size or self._files.view.size, np.float32)
        fed = {"images": self._paths(indices), "size": size}
        if plan.draws is None:
            boxes = self._files.view.boxes(self._files.sizes[indices])
            fed |= {"start": boxes[:, :2], "end": boxes[:, 2:]}
        else:
            fed |= {"anchor": plan.draws[:, :2], "shape": plan.draws[:, 2:4]}
            size[:, 1] *= np.where(plan.draws[:, 4], -1, 1)
            if self._transform.cutout:
                assert plan.image_size is not None
                side = cutout_side(self._transform.cutout, plan.image_size, self._files.size)
                fed |= {
                    "cutout": plan.draws[:, 5:7].astype(np.float32),
                    "cutout_shape": np.full((len(indices), 2), side, np.float32),
                }
        fed = {name: np.ascontiguousarray(values) for name, values in fed.items()}
        for name, values in fed.items():
            self._pipe.feed_input(name, values)
        return [plan, fed]

    def _paths(self, indices: np.ndarray) -> np.ndarray:
        """(B, L) uint8: the files' paths, filled up with zeros, where a path ends for the system. One array feeds faster than B."""
        names = [self._root + self._files.sample_paths.raw(index) for index in indices.tolist()]
        if self._files.replaced:
            names = [
                os.fsencode(self._files.replaced[index]) if index in self._files.replaced else name
                for index, name in zip(indices.tolist(), names, strict=True)
            ]
        longest = max(map(len, names)) + 1
        return np.frombuffer(b"".join(name.ljust(longest, b"\0") for name in names), np.uint8).reshape(
            len(names), longest
        )

    def _next(self) -> Batch:
        try:
            return super()._next()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(self._explain(error)) from error

    def _explain(self, error: RuntimeError) -> str:
        """What DALI could not read: files can change after the scan, and Pillow is more lenient."""
        samples = np.unique(np.concatenate([plan.indices for plan, *_ in self._fed])).tolist()
        with images_of_any_size():
            bad = try_all(samples, self._try, self._num_threads, "looking for the cause")
        told = "images have changed or become unreadable since the run began; check the disk, or replace them, and resume"
        if not bad:
            bad = dict.fromkeys(self._refused(samples), "Pillow can decode it, DALI cannot")
            told = "images are damaged; replace or remove them, and start again"
        if not bad:
            return f"DALI failed: {error}"
        return f"{told}:{self._files.listed(bad)}"

    def _refused(self, samples: list[int]) -> list[int]:
        """Those whose files DALI does not decode, each by itself."""

        def decode(fn: Any, types: Any) -> Any:
            return fn.decoders.image(
                fn.io.file.read(fn.external_source(name="images")), **self._decoder_options()
            )

        def build() -> Any:
            return self._pipeline(decode, batch_size=1, num_threads=1, prefetch_queue_depth=1)

        refused, pipe = [], build()
        for sample in samples:
            try:
                pipe.feed_input("images", self._paths(np.array([sample])))
                pipe.run()
            except RuntimeError:
                refused.append(sample)
                pipe = build()  # one that has failed is of no more use
        return refused

    def _try(self, sample: int) -> None:
        """Decode a file, which is to be of the size that the scan has read."""
        image = open_rgb(self._files.file(sample))
        height, width = self._files.sizes[sample].tolist()
        if image.size != (width, height):
            raise ValueError(f"{image.width}x{image.height} pixels, and no longer {width}x{height}")


def _preallocation(sizes: np.ndarray) -> dict[str, int]:
    """Sizes that the decoder unit makes room for at once: all but the largest thousandth, so that one huge image costs nothing."""
    height, width = np.quantile(sizes, 0.999, axis=0, method="higher").tolist()
    return {"preallocate_height_hint": int(height), "preallocate_width_hint": int(width)}
