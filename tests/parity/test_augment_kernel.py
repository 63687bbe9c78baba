"""Compare the augment kernel with its reference, and the reference with one image at a time."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kernels.augment.op import augment
from kernels.augment.reference import Augmentation, augment_reference
from tests.gpus import DEVICE, ON_GPU, USES_GPU, needs_gpu
from tests.parity.tolerances import assert_parity

pytestmark = USES_GPU

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MEAN = {1: (0.1307,), 3: (0.49139968, 0.48215841, 0.44653091), 4: (0.1, 0.4, 0.6, 0.9)}
STD = {1: (0.3081,), 3: (0.24703223, 0.24348513, 0.26158784), 4: (0.1, 0.2, 0.3, 0.4)}


def random_images(num_images: int, height: int, width: int, channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (num_images, height, width, channels), dtype=torch.uint8, generator=generator
    ).to(DEVICE)


def random_draws(num_images: int, height: int, width: int, padding: int, cutout: int) -> torch.Tensor:
    generator = np.random.default_rng(1)
    offsets = generator.integers(0, 2 * padding + 1, (num_images, 2))
    flips = generator.integers(0, 2, (num_images, 1))
    boxes = generator.integers(-cutout, (height, width), (num_images, 2))
    return torch.from_numpy(np.concatenate([offsets, flips, boxes], axis=1).astype(np.int32)).to(DEVICE)


def with_jitter(draws: torch.Tensor) -> torch.Tensor:
    """Add columns of brightness and contrast to draws (N, 5): the limits of int32, and values between."""
    values = np.random.default_rng(2).integers(-(2**31), 2**31, (len(draws), 2))
    values[:4] = [[-(2**31), -(2**31)], [2**31 - 1, 2**31 - 1], [0, 0], [-1, 1]]
    return torch.cat([draws, torch.from_numpy(values.astype(np.int32)).to(draws.device)], dim=1)


def settings(channels: int, padding: int, cutout: int, dtype: torch.dtype = torch.float16) -> Augmentation:
    return Augmentation(MEAN[channels], STD[channels], padding, cutout, dtype)


def assert_kernel(
    images: torch.Tensor, order: torch.Tensor, draws: torch.Tensor, augmentation: Augmentation
) -> None:
    arguments, count = (images, order, draws, augmentation), len(order)
    actual = augment(*arguments, count=count)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    op = "augment, interpreted" if not ON_GPU and actual.dtype is torch.bfloat16 else "augment"
    assert_parity(actual, augment_reference(*arguments, count=count), op, actual.dtype)


def augment_one_by_one(
    images: torch.Tensor, order: torch.Tensor, draws: torch.Tensor, padding: int, cutout: int, fill: list[int]
) -> torch.Tensor:
    """Return uint8 (B, H, W, C): pad, slice, mirror and fill one image after the other."""
    _, height, width, _ = images.shape
    done = []
    for sample in order.tolist():
        crop_y, crop_x, flip, cutout_y, cutout_x = draws[sample].tolist()
        padded = functional.pad(images[sample], (0, 0, padding, padding, padding, padding))
        window = padded[crop_y : crop_y + height, crop_x : crop_x + width]
        window = window.flip(1) if flip else window.clone()
        box = window[
            max(cutout_y, 0) : max(cutout_y + cutout, 0), max(cutout_x, 0) : max(cutout_x + cutout, 0)
        ]
        box[:] = torch.tensor(fill, dtype=torch.uint8, device=images.device)
        done.append(window)
    return torch.stack(done)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (31, 31, 3), (32, 32, 3), (5, 9, 3)])
def test_reference_equals_one_image_at_a_time(height: int, width: int, channels: int) -> None:
    images, draws = random_images(20, height, width, channels), random_draws(20, height, width, 4, 6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    mean, std = (0.5,) * channels, (1 / 255,) * channels
    fill = [128] * channels  # rint(127.5) is the even neighbour
    pixels = augment_one_by_one(images, order, draws, 4, 6, fill)
    expected = (pixels.float() - 127.5).permute(0, 3, 1, 2)
    augmentation = Augmentation(mean, std, 4, 6, torch.float32)
    actual = augment_reference(images, order, draws, augmentation, count=20)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("height", "width", "channels"),
    [(8, 8, 1), (8, 8, 3), (31, 31, 1), (31, 31, 3), (32, 32, 3), (33, 33, 3), (5, 9, 4), (1, 1, 1)],
)
def test_random_draws(height: int, width: int, channels: int, dtype: torch.dtype) -> None:
    images, draws = random_images(9, height, width, channels), random_draws(9, height, width, 4, 6)
    order = torch.tensor([8, 0, 3, 3, 7, 1, 6], device=DEVICE)  # with a repetition, without 2, 4, 5
    assert_kernel(images, order, draws, settings(channels, 4, 6, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_corner_draws(dtype: torch.dtype) -> None:
    """Cover extreme offsets, flips, and boxes clipped by each border, inside, outside, or one pixel wide."""
    size, padding, cutout = 8, 4, 4
    offsets = itertools.product((0, 2 * padding), (0, 2 * padding), (0, 1), [(2, 3)])
    boxes = itertools.product(
        [padding], [padding], [0], itertools.product((-4, -3, -1, 0, 4, 5, 7, 8), repeat=2)
    )
    rows = [[crop_y, crop_x, flip, *box] for crop_y, crop_x, flip, box in itertools.chain(offsets, boxes)]
    draws = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    images = random_images(len(rows), size, size, 3)
    order = torch.arange(len(rows), device=DEVICE)
    assert_kernel(images, order, draws, settings(3, padding, cutout, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("brightness", "contrast", "reflect"), [(0.14, 0.13, False), (0.5, 0.0, True), (0.0, 0.9, False)]
)
@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 3), (5, 9, 1)])
def test_brightness_and_contrast(
    height: int,
    width: int,
    channels: int,
    brightness: float,
    contrast: float,
    reflect: bool,
    dtype: torch.dtype,
) -> None:
    images, draws = random_images(9, height, width, channels), random_draws(9, height, width, 4, 3)
    order = torch.tensor([8, 0, 3, 3, 1, 2], device=DEVICE)
    jittered = settings(channels, 4, 3, dtype)._replace(
        reflect=reflect, brightness=brightness, contrast=contrast
    )
    assert_kernel(images, order, with_jitter(draws), jittered)


def test_brightness_and_contrast_are_numpy_s_and_leave_the_box() -> None:
    images, draws = random_images(9, 8, 8, 3), with_jitter(random_draws(9, 8, 8, 4, 3))
    order, plain = torch.arange(9, device=DEVICE), settings(3, 4, 3, torch.float32)
    before = augment(images, order, draws[:, :5].contiguous(), plain, count=9).cpu().numpy()
    shift, change = draws[:, 5:].cpu().numpy().astype(np.float32).T[..., None, None, None]
    b, c = shift * np.float32(0.3 / 2**31), change * np.float32(0.2 / 2**31)
    expected = (before + b) * (1 + c)
    for image, unchanged, row in zip(expected, before, draws.tolist(), strict=True):
        box = np.s_[:, max(row[3], 0) : max(row[3] + 3, 0), max(row[4], 0) : max(row[4] + 3, 0)]
        image[box] = unchanged[box]
    actual = augment(images, order, draws, plain._replace(brightness=0.3, contrast=0.2), count=9)
    assert np.array_equal(actual.cpu().numpy(), expected)


@pytest.mark.parametrize("padding", [1, 4, 7])
def test_a_reflected_border(padding: int) -> None:
    images, draws = random_images(9, 8, 8, 3), random_draws(9, 8, 8, padding, 3)
    reflected = settings(3, padding, 3, torch.float32)._replace(reflect=True)
    assert_kernel(images, torch.arange(9, device=DEVICE), draws, reflected)


def test_a_reflected_border_as_wide_as_the_image_is_refused() -> None:
    images, draws = random_images(2, 8, 8, 3), random_draws(2, 8, 8, 4, 0)
    reflected = settings(3, 8, 0)._replace(reflect=True)
    with pytest.raises(ValueError, match="border of 8 pixels"):
        augment(images, torch.arange(2, device=DEVICE), draws, reflected, count=2)


@pytest.mark.parametrize(("padding", "cutout"), [(0, 0), (0, 4), (4, 0), (9, 4), (4, 8), (4, 20)])
def test_padding_and_box_sizes(padding: int, cutout: int) -> None:
    """Cover no padding, no box, padding wider than the image, and a box as large as the image and larger."""
    images, draws = random_images(8, 8, 8, 3), random_draws(8, 8, 8, padding, cutout)
    order = torch.arange(8, device=DEVICE)
    assert_kernel(images, order, draws, settings(3, padding, cutout, torch.float32))


def test_a_box_over_the_whole_image_leaves_the_fill() -> None:
    order = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    draws = torch.tensor([[0, 0, 1, -1, -1]], dtype=torch.int32, device=DEVICE)
    actual = augment(random_images(1, 8, 8, 3), order, draws, settings(3, 4, 9, torch.float32), count=1)
    values = [(round(255 * m) - 255 * m) / (255 * s) for m, s in zip(MEAN[3], STD[3], strict=True)]
    fill = torch.tensor(values, device=DEVICE)
    torch.testing.assert_close(actual, fill[:, None, None].expand(1, 3, 8, 8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_pixel_value_is_normalised_as_numpy_does(dtype: torch.dtype) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    mean255, std255 = (np.array([255 * value for value in row], np.float32) for row in (MEAN[3], STD[3]))
    normalised = (values.astype(np.float32) - mean255) * (np.float32(1) / std255)
    expected = torch.from_numpy(normalised).to(DEVICE, dtype)
    order = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    draws = torch.zeros(1, 5, dtype=torch.int32, device=DEVICE)
    images = torch.from_numpy(values).to(DEVICE)
    actual = augment(images, order, draws, settings(3, 0, 0, dtype), count=1)
    assert_parity(actual.permute(0, 2, 3, 1), expected, "augment", dtype)


@pytest.mark.parametrize("order_dtype", [torch.int64, torch.int32])
def test_slices_of_an_order_are_slices_of_the_whole(order_dtype: torch.dtype) -> None:
    images, draws = random_images(8, 8, 8, 3), random_draws(8, 8, 8, 4, 4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).to(DEVICE, order_dtype)
    arguments = images, order, draws, settings(3, 4, 4)
    whole = augment(*arguments, count=8)
    for start, count in [(0, 3), (1, 1), (3, 5)]:
        part = augment(*arguments, start=start, count=count)
        torch.testing.assert_close(part, whole[start : start + count])


def test_out_is_written_and_returned() -> None:
    images, draws = random_images(4, 8, 8, 3), random_draws(4, 8, 8, 4, 4)
    arguments = images, torch.arange(4, device=DEVICE), draws, settings(3, 4, 4)
    buffer = torch.full((6, 3, 8, 8), 9.0, dtype=torch.float16, device=DEVICE)
    buffer = buffer.to(memory_format=torch.channels_last)
    result = augment(*arguments, count=4, out=buffer[1:5])
    assert result.data_ptr() == buffer[1].data_ptr()
    torch.testing.assert_close(buffer[1:5], augment_reference(*arguments, count=4), rtol=0, atol=0)
    assert (buffer[0] == 9).all() and (buffer[5] == 9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 8, 8, 3)}, "images must be contiguous uint8"),
        (
            {"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8).permute(0, 2, 3, 1)},
            "images must be contiguous uint8",
        ),
        ({"draws": torch.zeros(4, 5, dtype=torch.int64)}, "draws must be contiguous int32"),
        ({"draws": torch.zeros(3, 5, dtype=torch.int32)}, "draws must be contiguous int32"),
        ({"draws": torch.zeros(4, 7, dtype=torch.int32)}, "draws must be contiguous int32"),
        (
            {"augmentation": settings(3, 4, 4)._replace(contrast=0.1)},
            r"draws must be contiguous int32 \(4, 7\)",
        ),
        ({"start": 2}, "cannot take 3 samples from position 2"),
        ({"start": -1}, "cannot take 3 samples from position -1"),
        ({"count": 0}, "cannot take 0 samples"),
        ({"augmentation": settings(1, 4, 4)}, "3 channels"),
        ({"out": torch.zeros(3, 3, 8, 8, dtype=torch.float16)}, "out must be channels_last"),
        ({"out": torch.zeros(3, 3, 8, 8).to(memory_format=torch.channels_last)}, "out must be channels_last"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "images": torch.zeros(4, 8, 8, 3, dtype=torch.uint8),
        "draws": torch.zeros(4, 5, dtype=torch.int32),
    }
    arguments |= {"order": torch.arange(4), "count": 3, "augmentation": settings(3, 4, 4)}
    with pytest.raises(ValueError, match=message):
        augment(**(arguments | change))


@needs_gpu("2 GiB of images")
def test_data_sets_of_more_than_2_gib() -> None:
    images = torch.empty(15_000, 224, 224, 3, dtype=torch.uint8, device=DEVICE)
    images[-8:] = random_images(8, 224, 224, 3)
    order = torch.arange(14_992, 15_000, device=DEVICE)
    assert_kernel(images, order, random_draws(15_000, 224, 224, 4, 64), settings(3, 4, 64))
