"""Makes the data sets that need no files: scikit-learn's digits, and synthetic images."""

import importlib.util
import os
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.image_set import ImageSet
from pipeline.data.datasets.splits import RawSplits
from pipeline.data.sampling.philox import named_generator
from pipeline.data.sampling.stratified import draw_stratified
from pipeline.errors import UserError

_DIGITS_TEST_IMAGES = 360
_DIGITS_SPLIT_SEED = 0
_DIGITS_WHITE = 16
_NOISE_BITS = 6  # of 8: noise in [0, 64) is added to a class colour in [0, 192]


def load_digits(image_size: int) -> RawSplits:
    """Load the handwritten digits of scikit-learn: 1797 images of 8x8, grey values 0 to 16, made larger, RGB.

    The images are resized bilinearly. The stratified split, 1437 for training and 360 for testing, is the
    same in every run: it does not depend on the seed.
    """
    data, labels = _read_digits()
    small = rearrange(np.rint(data * (255 / _DIGITS_WHITE)).astype(np.uint8), "n (h w) -> n h w", h=8)
    size, bilinear = (image_size, image_size), Image.Resampling.BILINEAR
    grey = np.stack([np.asarray(Image.fromarray(image).resize(size, bilinear)) for image in small])
    images = np.repeat(grey[..., None], NUM_CHANNELS, axis=3)
    test = draw_stratified(labels, _DIGITS_TEST_IMAGES, named_generator(_DIGITS_SPLIT_SEED, "digits"))
    train = np.setdiff1d(np.arange(len(labels)), test)
    return RawSplits(
        ImageSet(images[train], labels[train]), ImageSet(images[test], labels[test]), tuple("0123456789")
    )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read the file that scikit-learn comes with, without importing scikit-learn, which takes seconds.

    Returns:
        The images, (1797, 64) float64, and the labels, (1797,) int64.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "scikit-learn is installed"
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def make_synthetic(num_samples: int, num_classes: int, image_size: int, seed: int) -> RawSplits:
    """Make random images that a network can tell apart: uniform noise on a colour drawn for each class.

    Image i has label i modulo the number of classes. There are a fifth as many test images (at least one),
    with other noise.

    Raises:
        UserError: the images do not fit into the machine's memory. The check is made first, because the
            system grants the memory and kills the process later.
    """
    _check_memory(num_samples, image_size)
    colours = named_generator(seed, "colours").integers(
        0, 256 - 2**_NOISE_BITS, (num_classes, NUM_CHANNELS), dtype=np.uint8, endpoint=True
    )

    def make_part(count: int, stream: str) -> ImageSet:
        labels = np.arange(count) % num_classes
        num_bytes = count * image_size * image_size * NUM_CHANNELS
        words = named_generator(seed, stream).bit_generator.random_raw(-(-num_bytes // 8))
        noise = words.view(np.uint8)[:num_bytes]
        images = rearrange(noise, "(n h w c) -> n h w c", h=image_size, w=image_size, c=NUM_CHANNELS)
        images >>= 8 - _NOISE_BITS
        images += rearrange(colours[labels], "n c -> n 1 1 c")
        return ImageSet(images, labels)

    names = tuple(f"class {label}" for label in range(num_classes))
    return RawSplits(make_part(num_samples, "train"), make_part(max(1, num_samples // 5), "test"), names)


def _check_memory(num_samples: int, image_size: int) -> None:
    per_image, memory = image_size**2 * NUM_CHANNELS, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = 1.2 * num_samples * per_image
    if needed > memory:
        raise UserError(
            f"data.num_samples: {num_samples} images of {image_size} x {image_size} pixels take "
            f"{needed / 2**30:,.0f} GiB, but the machine has {memory / 2**30:,.0f}; "
            f"use data.num_samples={int(memory / per_image / 2)} or less"
        )
