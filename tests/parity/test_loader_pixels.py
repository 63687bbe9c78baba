"""Every loader turns the same draws into the pixels that numpy computes one by one."""

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.data import Transform
from tests.parity.loaders import (
    BACKENDS,
    DTYPES,
    MEAN,
    STD,
    Build,
    Prescribed,
    build_dali,
    build_reference,
    corners,
    make_images,
    oracle_batch,
)
from tests.parity.tolerances import assert_parity


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize(("cutout", "mode"), [(4, "clipped"), (5, "clipped"), (4, "inside"), (0, "clipped")])
def test_corner_draws(padding: int, cutout: int, mode: str, dtype: torch.dtype, reflect: bool):
    draws = corners(padding, cutout, mode)
    images, labels = make_images(len(draws))
    transform = Transform(MEAN, STD, dtype, crop_padding=padding, cutout=cutout, reflect=reflect)
    sampler = Prescribed(draws, len(draws) // 2)
    dali_loader, reference = (
        build(images, labels, sampler, transform) for build in (build_dali, build_reference)
    )
    for step, (one, other) in enumerate(zip(dali_loader, reference, strict=True)):
        expected = oracle_batch(images, sampler.plan(0, step), transform)
        for batch in (one, other):
            assert batch.images.dtype == dtype
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert_parity(batch.images.contiguous(), expected, "loader", dtype)
        assert_parity(one.images, other.images, "loader", dtype)


@pytest.mark.parametrize("jitter", [(0.0, 0.0), (2.0, 0.5)])
@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", BACKENDS)
def test_the_right_pixels_and_no_other(
    build: Build, dtype: torch.dtype, reflect: bool, jitter: tuple[float, float]
):
    """With whole numbers as statistics every value is exact in every type, so no tolerance is needed.

    So it is with whole numbers as brightness, and quarters as contrast.
    """
    draws = corners(2, 3, "clipped")
    if any(jitter):
        draws = with_jitter(draws, [-(2**30), 0, 2**30])
    images, labels = make_images(len(draws))
    means, stds = (10 / 255, 20 / 255, 30 / 255), (1 / 255,) * 3
    transform = Transform(means, stds, dtype, True, 2, 3, reflect, *jitter)
    sampler = Prescribed(draws, len(draws))
    (batch,) = build(images, labels, sampler, transform)
    assert torch.equal(batch.images, oracle_batch(images, sampler.plan(0, 0), transform))


def with_jitter(draws: np.ndarray, values: list[int]) -> np.ndarray:
    """Add columns of brightness and contrast to draws (B, 5): all pairs of the values, in turn."""
    pairs = list(product(values, values))
    return np.concatenate([draws, np.resize(np.array(pairs, np.int32), (len(draws), 2))], axis=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("jitter", [(0.4, 0.3), (0.4, 0.0), (0.0, 0.3), (10.0, 0.99)])
@pytest.mark.parametrize("build", BACKENDS)
def test_corner_draws_of_brightness_and_contrast(
    build: Build, jitter: tuple[float, float], dtype: torch.dtype
):
    draws = with_jitter(corners(1, 4, "inside"), [-(2**31), -1, 0, 12345678, 2**31 - 1])
    images, labels = make_images(len(draws))
    transform = Transform(MEAN, STD, dtype, True, 1, 4, False, *jitter)
    sampler = Prescribed(draws, len(draws))
    (batch,) = build(images, labels, sampler, transform)
    assert batch.images.dtype == dtype and batch.images.is_contiguous(memory_format=torch.channels_last)
    expected = oracle_batch(images, sampler.plan(0, 0), transform)
    assert_parity(batch.images.contiguous(), expected, "loader, brightness and contrast", dtype)


@pytest.mark.parametrize("build", BACKENDS)
def test_the_fill_of_cutout_is_within_half_a_grey_value_of_the_paper_s_zero(build: Build):
    draws = np.array([[0, 0, 0, -1, -1]] * 2, np.int32)
    images, labels = make_images(2)
    transform = Transform(MEAN, STD, torch.float32, cutout=16)
    (batch,) = build(images, labels, Prescribed(draws, 2), transform)
    for channel, std in enumerate(STD):
        assert batch.images[:, channel].abs().max() <= 0.5 / (255 * std) + 1e-6
