"""Tests data sets by name: digits, synthetic, the holdout and the statistics."""

import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from pipeline.config import DataConfig
from pipeline.data.datasets.load import load_splits
from pipeline.data.datasets.statistics import _CHUNK_PIXELS, channel_histogram, mean_and_std
from pipeline.data.sampling.philox import named_generator
from pipeline.data.sampling.stratified import allocate, draw_stratified
from pipeline.errors import UserError


def load(seed: int = 0, **values: object) -> Any:
    """Load the splits; `Any`, because streamed ones would have no `images`."""
    return load_splits(TypeAdapter(DataConfig).validate_python(values), seed)


def synthetic(seed: int = 0, **changes: object) -> Any:
    return load(
        seed, dataset="synthetic", **{"num_samples": 300, "num_classes": 3, "image_size": 8, **changes}
    )


@pytest.fixture(scope="module")
def digits() -> Any:
    return load(dataset="digits")


def test_digits_parts(digits: Any) -> None:
    assert (len(digits.train), len(digits.test), digits.holdout) == (1437, 360, None)
    assert digits.class_names == tuple("0123456789")
    assert digits.num_classes == 10
    assert digits.image_size == (32, 32)
    assert digits.train.sample_paths is None
    # stratified: a tenth of 360 each, as far as the classes are equal
    assert np.bincount(digits.test.labels).min() >= 34
    assert digits.train.images.flags.writeable


def test_digits_are_the_bundled_ones(digits: Any) -> None:
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    expected = sorted(
        (image.tobytes(), label)
        for image, label in zip(np.rint(data * 255 / 16).astype(np.uint8), labels, strict=True)
    )
    small = load(dataset="digits", image_size=8)  # not resized
    actual = [
        (image[..., 0].tobytes(), label)
        for part in (small.train, small.test)
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    assert sorted(actual) == expected
    large, reference = (
        digits.test.images[0],
        Image.fromarray(small.test.images[0]).resize((32, 32), Image.Resampling.BILINEAR),
    )
    assert (large == np.asarray(reference)).all()


def test_digits_split_does_not_depend_on_the_seed(digits: Any) -> None:
    other = load(seed=7, dataset="digits")
    assert (other.test.images == digits.test.images).all()
    assert (other.train.labels == digits.train.labels).all()


def test_digits_in_other_sizes() -> None:
    assert load(dataset="digits", image_size=17).image_size == (17, 17)


def test_synthetic_depends_on_the_seed_alone() -> None:
    first, again, other = synthetic(1), synthetic(1), synthetic(2)
    assert (first.train.images == again.train.images).all()
    assert (first.test.images == again.test.images).all()
    assert (first.train.images != other.train.images).any()
    assert (first.train.images[:60] != first.test.images).any()
    assert first.train.images.flags.writeable


def test_synthetic_sizes() -> None:
    splits = synthetic(num_samples=7, num_classes=11, image_size=9)
    assert splits.train.images.shape == (7, 9, 9, 3)
    assert splits.test.images.shape == (1, 9, 9, 3)
    assert splits.num_classes == 11


def test_synthetic_can_be_learnt() -> None:
    splits = synthetic()
    colour = splits.train.images.mean((1, 2))
    centres = np.stack([colour[splits.train.labels == label].mean(0) for label in range(3)])
    distance = ((splits.test.images.mean((1, 2))[:, None] - centres) ** 2).sum(2)
    assert (distance.argmin(1) == splits.test.labels).all()


def test_statistics_are_those_of_float64() -> None:
    splits = synthetic()
    pixels = splits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(splits.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_histogram_spans_chunks() -> None:
    images = np.random.default_rng(0).integers(0, 256, (_CHUNK_PIXELS // 64 + 3, 8, 8, 3), dtype=np.uint8)
    expected = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    assert (channel_histogram(images) == expected).all()


def test_statistics_do_not_overflow() -> None:
    histogram = np.zeros((1, 256), np.int64)
    histogram[0, [0, 255]] = 2**60
    assert mean_and_std(histogram) == ((0.5,), (0.5,))


def test_statistics_leave_the_holdout_out() -> None:
    splits = synthetic(holdout=100)
    pixels = splits.train.images / 255
    np.testing.assert_allclose(splits.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(splits.std, pixels.std((0, 1, 2)), rtol=1e-12)


def test_given_statistics_are_taken() -> None:
    splits = synthetic(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert (splits.mean, splits.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_given_statistics_need_three_channels() -> None:
    with pytest.raises(UserError, match=r"data\.mean: 1 numbers"):
        synthetic(mean=[0.1], std=[0.4])


@pytest.mark.parametrize("holdout", [30, 0.1])
def test_holdout_is_cut_out_of_training(holdout: float) -> None:
    whole, splits = synthetic(), synthetic(holdout=holdout)
    assert splits.holdout is not None
    assert (len(splits.train), len(splits.holdout)) == (270, 30)
    assert np.bincount(splits.holdout.labels).tolist() == [10, 10, 10]
    place = {image.tobytes(): number for number, image in enumerate(whole.train.images)}
    seen = []
    for part in (splits.train, splits.holdout):
        original = [place[image.tobytes()] for image in part.images]
        assert (part.labels == whole.train.labels[original]).all()
        assert original == sorted(original)
        seen += original
    assert sorted(seen) == list(range(300))
    assert (splits.test.images == whole.test.images).all()


def test_holdout_depends_on_the_seed() -> None:
    labels = np.arange(300) % 3
    draws = [draw_stratified(labels, 30, named_generator(seed, "holdout")).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] != draw_stratified(labels, 30, named_generator(0, "digits")).tolist()
    named_generator(2**63 - 1, "holdout")  # the largest seed


@pytest.mark.parametrize("holdout", [298, 300, 10**9, 0.999, 0.001])
def test_impossible_holdout(holdout: float) -> None:
    with pytest.raises(
        UserError, match=r"data\.holdout: .* of 300 training images; at least 1 and at most 297"
    ):
        synthetic(holdout=holdout)


def test_largest_holdout_leaves_one_per_class() -> None:
    splits = synthetic(holdout=297)
    assert sorted(splits.train.labels) == [0, 1, 2]


def test_holdout_smaller_than_the_classes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        splits = synthetic(holdout=2)
    assert splits.holdout is not None
    assert len(splits.holdout) == 2
    assert "leave 1 of 3 classes without a held-out image" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([50, 50], 10, [5, 5]),
        ([90, 9, 1], 10, [9, 1, 0]),
        ([1, 1, 98], 97, [0, 0, 97]),
        ([3, 0, 3], 3, [2, 0, 1]),
        ([5, 5, 5], 4, [2, 1, 1]),
        ([2, 2, 2], 0, [0, 0, 0]),
    ],
)
def test_allocation(sizes: list[int], total: int, expected: list[int]) -> None:
    assert allocate(np.array(sizes), total).tolist() == expected


def test_allocation_never_takes_a_whole_class() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        sizes = generator.integers(0, 9, 7)
        total = int(generator.integers(0, np.maximum(sizes - 1, 0).sum() + 1))
        count = allocate(sizes, total) if sizes.sum() else np.zeros(7)
        assert count.sum() == total
        assert (count <= np.maximum(sizes - 1, 0)).all()


def test_constant_images_have_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pipeline.data.datasets.load.channel_histogram",
        lambda images: np.eye(1, 256, dtype=np.int64).repeat(3, 0),
    )
    with pytest.raises(UserError, match=r"data\.std: channel 0 has the same value"):
        synthetic()
