"""Give the loaders of the parity tests, images, draws, and the oracle: numpy on one image at a time.

The oracle is written from the description of the draws and of nothing else.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from pipeline.data import Loader, Transform
from pipeline.data.loaders.dali_arrays import DaliArrayLoader
from pipeline.data.loaders.reference import ArraySource, ReferenceLoader
from pipeline.data.sampling.batch_plan import BatchPlan, Sampler

CPU = torch.device("cpu")
HEIGHT, WIDTH = 10, 8
MEAN, STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)
DTYPES = [torch.float32, torch.float16]

# Builds a loader of (images, labels) with a sampler and a transform.
Build = Callable[[torch.Tensor, torch.Tensor, Sampler, Transform], Loader]


def build_dali(images: torch.Tensor, labels: torch.Tensor, sampler: Sampler, transform: Transform) -> Loader:
    return DaliArrayLoader(images, labels, sampler, transform, CPU, num_threads=1, prefetch=2)


def build_reference(
    images: torch.Tensor, labels: torch.Tensor, sampler: Sampler, transform: Transform
) -> Loader:
    return ReferenceLoader(ArraySource(images), labels, sampler, transform, CPU)


BACKENDS = [pytest.param(build_dali, id="dali"), pytest.param(build_reference, id="reference")]


def make_images(count: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    """Make images in which neighbouring pixels differ, and no pixel is black like the padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 7


def oracle(image: np.ndarray, draws: np.ndarray | None, transform: Transform) -> np.ndarray:
    """Apply the draws pixel by pixel: (H, W, C) uint8 → (C, H, W) float64."""
    height, width, channels = image.shape
    fill = [round(255 * mean) for mean in transform.mean]
    crop_y, crop_x, flip, box_y, box_x = (0, 0, 0, 0, 0) if draws is None else draws[:5].tolist()
    shift, change = (0, 0) if draws is None or len(draws) == 5 else draws[5:].tolist()
    brightness, contrast = transform.brightness * shift / 2**31, transform.contrast * change / 2**31
    padding, cutout = (0, 0) if draws is None else (transform.crop_padding, transform.cutout)
    if transform.reflect:  # numpy's own mirror, and every crop is inside
        image, offset = np.pad(image, [(padding, padding), (padding, padding), (0, 0)], mode="reflect"), 0
    else:
        offset = padding
    out = np.zeros((channels, height, width))
    for y, x, channel in product(range(height), range(width), range(channels)):
        source_y, source_x = y + crop_y - offset, (width - 1 - x if flip else x) + crop_x - offset
        inside = 0 <= source_y < image.shape[0] and 0 <= source_x < image.shape[1]
        value = float(image[source_y, source_x, channel]) if inside else 0.0
        in_box = box_y <= y < box_y + cutout and box_x <= x < box_x + cutout
        value = fill[channel] if in_box else value
        value = (value - 255 * transform.mean[channel]) / (255 * transform.std[channel])
        out[channel, y, x] = value if in_box else (value + brightness) * (1 + contrast)
    return out


def oracle_batch(images: torch.Tensor, plan: BatchPlan, transform: Transform) -> torch.Tensor:
    draws = [None] * len(plan.indices) if plan.draws is None else plan.draws
    done = [
        oracle(images[index].numpy(), draw, transform)
        for index, draw in zip(plan.indices, draws, strict=True)
    ]
    return torch.from_numpy(np.stack(done)).to(transform.dtype)


class Prescribed:
    """A sampler with draws from the test: one epoch, in order."""

    augmented = True

    def __init__(self, draws: np.ndarray, batch_size: int):
        assert len(draws) % batch_size == 0
        self.num_samples, self.local_batch_size, self.steps_per_epoch = (
            len(draws),
            batch_size,
            len(draws) // batch_size,
        )
        self._draws = draws

    def plan(self, epoch: int, step: int) -> BatchPlan:
        chosen = np.arange(step * self.local_batch_size, (step + 1) * self.local_batch_size)
        return BatchPlan(chosen, np.ones(self.local_batch_size, bool), self._draws[chosen])


def corners(padding: int, cutout: int, mode: str) -> np.ndarray:
    """Return every crop offset with every flip, with boxes that each side and corner clips or touches."""
    if mode == "clipped":
        ys, xs = (
            [-(cutout // 2), -1, 0, side // 2, side - cutout, side - 1 - cutout // 2]
            for side in (HEIGHT, WIDTH)
        )
    else:
        ys, xs = ([0, 1, (side - cutout) // 2, side - cutout] for side in (HEIGHT, WIDTH))
    offsets = range(2 * padding + 1)
    boxes = list(product(ys, xs))
    crops = list(product(offsets, offsets, (0, 1)))
    if padding > 1:  # all crops and all boxes, but not all pairs
        rows = [(*crop, *boxes[number % len(boxes)]) for number, crop in enumerate(crops)]
    else:
        rows = [(*crop, *box) for crop, box in product(crops, boxes)]
    return np.array(rows, np.int32)
