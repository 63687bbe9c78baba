"""Streams images from files with DALI: read, decode, crop, resize, flip, Cutout, normalise, on GPU or CPU.

The inputs are one array each for a whole batch: paths in the order of the epoch, crops, sizes. DALI reads the
files in its own threads, without Python's lock. Of images in shards, DALI gets the bytes, as views of mapped
files: they are read in the same threads. The time of every operator is linear in the batch: the
decoder cuts out the crop (on a GPU it decodes only this part), `resize` flips if the requested width is
negative, `erase` does Cutout, and `crop_mirror_normalize` has fixed arguments.
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
from pipeline.data.files.decode import images_of_any_size
from pipeline.data.files.many import try_all
from pipeline.data.loaders.base import Transform
from pipeline.data.loaders.dali_base import PipelinedLoader
from pipeline.data.loaders.dali_decoding import Decoding, decoder_options, is_chosen
from pipeline.data.loaders.decoder import DecoderName, share_on_gpu
from pipeline.data.loaders.mapped_images import MappedImages
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler
from pipeline.data.sampling.stream_plan import cutout_side
from pipeline.errors import TrainingError

_RANDAUGMENT_LEVELS = 31  # of magnitude, as in the paper


@dataclass(frozen=True)
class Photometric:
    """Augmentation that DALI draws itself: different after a resume, or on another number of processes.

    Attributes:
        color_jitter: as `augment.color_jitter`.
        randaugment, magnitude: as `augment.randaugment` and `augment.randaugment_magnitude`.
        seed: of DALI's draws.
    """

    color_jitter: float = 0.0
    randaugment: int = 0
    magnitude: int = 9
    seed: int = 0


class DaliFileLoader(PipelinedLoader):
    """Loads batches of images that stay in their files.

    Training shows a random crop of each image, evaluation the centre (`FileSet.view`). Batches may differ in
    image size.

    Args:
        files: the data set.
        labels, sampler, device: as for `PipelinedLoader`.
        transform: normalisation, Cutout, type and layout.
        decoding: threads, prefetch and decoder.
        photometric: augmentation that DALI draws in training.
    """

    def __init__(
        self,
        files: FileSet,
        labels: torch.Tensor,
        sampler: Sampler,
        transform: Transform,
        device: torch.device,
        decoding: Decoding,
        photometric: Photometric = Photometric(),
    ):
        super().__init__(labels, sampler, transform, device, decoding.num_threads, decoding.prefetch)
        self._files, self._decoding, self._photometric = files, decoding, photometric
        self._decoder: DecoderName = decoding.decoder if self._stream is not None else "cpu"
        self._root = os.fsencode(files.root) + b"/"
        self._mapped = MappedImages(files) if files.files.members is not None else None
        draws_operations = self._augmented and photometric.randaugment > 0
        self._conditional = self._conditional or draws_operations or self._decoder == "both"

    def _restart(self, epoch: int, step: int) -> None:
        # DALI's draws start again here: with another seed at every step, so that no numbers are repeated
        self._seed = (self._photometric.seed + epoch * self.steps_per_epoch + step) % 2**31
        super()._restart(epoch, step)

    def _define(self, fn: Any, types: Any) -> Any:
        encoded = self._encoded(_source("images", fn), fn)
        size = _check_size(encoded, _source("size", fn), fn, types)
        if not self._augmented:
            return self._normalise(self._apply_centre_crop(encoded, size, fn), fn, types)
        images = self._apply_trivial_augment(self._apply_crop_and_flip(encoded, size, fn), fn, types)
        images = self._apply_photometric(images, fn)
        if self._transform.cutout:
            images = self._apply_cutout(images, fn)
        return self._normalise(images, fn, types)

    def _encoded(self, images: Any, fn: Any) -> Any:
        """Define the encoded images: of files, the input holds paths; of shards, it holds the bytes."""
        if self._mapped is None:
            return fn.io.file.read(images)
        # the GPU's decoders want page-locked memory, which the copy's output is, and mapped files are not;
        # and DALI's threads read the files by copying them, where one thread of the decoder would
        return images if self._decoder == "cpu" else fn.copy(images)

    def _apply_centre_crop(self, encoded: Any, size: Any, fn: Any) -> Any:
        images = self._decode(fn.decoders.image, [encoded], fn)
        return fn.resize(images, size=size, roi_start=_source("start", fn), roi_end=_source("end", fn))

    def _apply_crop_and_flip(self, encoded: Any, size: Any, fn: Any) -> Any:
        """Decode the crop and resize it. A negative width in SIZE flips the image horizontally."""
        inputs = [encoded, _source("anchor", fn), _source("shape", fn)]
        return fn.resize(self._decode(fn.decoders.image_slice, inputs, fn, axis_names="HW"), size=size)

    def _decode(self, operator: Any, inputs: Sequence[Any], fn: Any, **options: Any) -> Any:
        """Define the decoder, with its output on the device of the other operators.

        Args:
            operator: of `fn.decoders`.
            inputs: of the operator.
            fn: DALI's module.
            options: of the operator, but for its device.
        """
        if self._decoder != "both":
            return self._to_gpu(operator(*inputs, **options, **self._options_of(self._decoder)))
        # DALI turns the condition into two parts of the graph, each for its images of the batch
        if _source("by_gpu", fn):
            images = operator(*inputs, **options, **self._options_of("gpu"))
        else:
            images = self._to_gpu(operator(*inputs, **options, **self._options_of("cpu")))
        return images

    def _apply_cutout(self, images: Any, fn: Any) -> Any:
        anchor, shape = _source("cutout", fn), _source("cutout_shape", fn)
        fill = self._transform.cutout_fill
        return fn.erase(images, anchor=anchor, shape=shape, axis_names="HW", fill_value=fill)

    def _apply_photometric(self, images: Any, fn: Any) -> Any:
        """Apply the augmentation that DALI draws."""
        options = self._photometric
        if options.color_jitter:
            change = (1 - options.color_jitter, 1 + options.color_jitter)
            names = ("brightness", "contrast", "saturation")
            images = fn.color_twist(images, **{name: fn.random.uniform(range=change) for name in names})
        if options.randaugment:
            from nvidia.dali.auto_aug.rand_augment import rand_augment

            # DALI uses deprecated names of its own, and its warning ignores the filters
            with warnings.catch_warnings(record=True):
                images = rand_augment(
                    images, n=options.randaugment, m=options.magnitude, num_magnitude_bins=_RANDAUGMENT_LEVELS
                )
        return images

    def _options_of(self, decoder: DecoderName) -> dict[str, Any]:
        return decoder_options(decoder, self._decoding.hw_load, self._files.sizes)

    def _to_gpu(self, images: Any) -> Any:
        """Move images that the CPU has decoded to the device of the other operators."""
        return images.gpu() if self._stream is not None and self._decoder != "gpu" else images

    def _feed_inputs(
        self, plans: Sequence[BatchPlan], indices: np.ndarray, on_device: torch.Tensor
    ) -> list[Any]:
        (plan,) = plans
        size = np.full((len(indices), 2), plan.image_size or self._files.view.size, np.float32)
        inputs: dict[str, Any] = {"size": size}
        inputs["scanned"] = self._files.sizes[indices].astype(np.int64)
        if self._decoder == "both":
            full, given = self._files.size, self._decoding.gpu_share
            inputs["by_gpu"] = is_chosen(indices, share_on_gpu("both", given, plan.image_size, full))
        if plan.draws is None:
            boxes = self._files.view.boxes(self._files.sizes[indices])
            inputs |= {"start": boxes[:, :2], "end": boxes[:, 2:]}
        else:
            inputs |= {"anchor": plan.draws[:, :2], "shape": plan.draws[:, 2:4]}
            size[:, 1] *= np.where(plan.draws[:, 4], -1, 1)
            side = plan.image_size or self._files.size
            inputs |= self._trivial_augment_inputs(plan.draws, (side, side))
            if self._transform.cutout:
                assert plan.image_size is not None
                box = cutout_side(self._transform.cutout, plan.image_size, self._files.size)
                inputs["cutout"] = plan.draws[:, 5:7].astype(np.float32)
                inputs["cutout_shape"] = np.full((len(indices), 2), box, np.float32)
        inputs = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
        inputs["images"] = self._images(indices)
        for name, values in inputs.items():
            self._pipe.feed_input(name, values)
        return [plan, inputs]

    def _images(self, indices: np.ndarray) -> np.ndarray | list[np.ndarray]:
        """Return the input `images` for these samples."""
        return self._paths(indices) if self._mapped is None else self._mapped.views(indices.tolist())

    def _paths(self, indices: np.ndarray) -> np.ndarray:
        """Return the files' paths as (B, L) uint8, padded with zeros, at which the system ends a path.

        Feeding one array is faster than feeding B arrays.
        """
        files = self._files
        names = [
            os.fsencode(files.replaced[index])
            if index in files.replaced
            else self._root + files.sample_paths.raw(index)
            for index in indices.tolist()
        ]
        longest = max(map(len, names)) + 1
        padded = b"".join(name.ljust(longest, b"\0") for name in names)
        return np.frombuffer(padded, np.uint8).reshape(len(names), longest)

    def _next(self) -> Batch:
        try:
            return super()._next()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._explain(error) from error

    def _explain(self, error: RuntimeError) -> TrainingError:
        """Find the files that DALI could not read: damaged, changed after the scan, or refused by DALI."""
        samples = np.unique(np.concatenate([plan.indices for plan, *_ in self._fed])).tolist()
        work = self._files.decode, self._num_threads, "looking for the cause"
        bad = try_all(samples, *work, within=images_of_any_size)
        if bad:
            return self._files.error_of(bad)
        bad = dict.fromkeys(self._refused_by_dali(samples), "Pillow can decode it, DALI cannot")
        if bad:
            listed = self._files.list_bad(bad)
            return TrainingError(f"images are damaged; replace or remove them, and start again:{listed}")
        return TrainingError(f"DALI failed: {error}")

    def _refused_by_dali(self, samples: list[int]) -> list[int]:
        """Decode each file alone with DALI, and return the samples for which it fails."""

        def decode(fn: Any, types: Any) -> Any:
            encoded = self._encoded(fn.external_source(name="images"), fn)
            return fn.decoders.image(encoded, **self._options_of("cpu" if self._decoder == "cpu" else "gpu"))

        def build() -> Any:
            return self._pipeline(decode, batch_size=1, num_threads=1, prefetch_queue_depth=1)

        refused, pipe = [], build()
        for sample in samples:
            try:
                pipe.feed_input("images", self._images(np.array([sample])))
                pipe.run()
            except RuntimeError:
                refused.append(sample)
                pipe = build()  # a pipeline cannot be used after an error
        return refused


def _source(name: str, fn: Any) -> Any:
    return fn.external_source(name=name, no_copy=True)


def _check_size(encoded: Any, size: Any, fn: Any, types: Any) -> Any:
    """Return SIZE, the input of `resize`; end the pipeline if an image has another size than in the scan.

    Without this check, DALI would crop the wrong part of an image that was replaced by a larger one, and in
    evaluation it would read memory beyond the end of a smaller one.
    """
    differ = fn.peek_image_shape(encoded)[:2] != _source("scanned", fn)
    # DALI has no operator that raises an error: a slice that begins at 1 is out of bounds
    return fn.slice(size, start=fn.reductions.max(fn.cast(differ, dtype=types.INT32)), shape=[2], axes=[0])
