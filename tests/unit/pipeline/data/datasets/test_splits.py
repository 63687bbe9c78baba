"""Tests that arrays of a caller's own are checked: each message names the array and what it has to be."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import ImageSet, Splits
from pipeline.errors import UserError

IMAGES, LABELS = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
NOT_IMAGES = {
    "fractions": (IMAGES / 255, r"float64 \(2, 4, 4, 3\); give \(N, H, W, 3\) uint8"),
    "channels first": (IMAGES.transpose(0, 3, 1, 2), r"as images.transpose\(0, 2, 3, 1\)"),
    "grey": (IMAGES[..., 0], "grey as three equal channels"),
    "one channel": (IMAGES[..., :1], "grey as three equal channels"),
    "four channels": (np.zeros((2, 4, 4, 4), np.uint8), r"uint8 \(2, 4, 4, 4\); give \(N, H, W, 3\)"),
    "one image": (IMAGES[0], r"as images\[None\]"),
    "mirrored": (IMAGES[:, :, ::-1], "np.ascontiguousarray"),
    "no pixels": (IMAGES[:, :0], r"\(2, 0, 4, 3\)"),
    "a tensor": (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "a Tensor is not an array of numpy"),
    "a list": ([[0]], "a list is not an array of numpy"),
}


@pytest.mark.parametrize("array", NOT_IMAGES)
def test_an_image_set_refuses_other_images(array: str) -> None:
    images, message = NOT_IMAGES[array]
    with pytest.raises(UserError, match=f"^images: .*{message}"):
        ImageSet(images, LABELS)


@pytest.mark.parametrize(
    "labels",
    [LABELS[:1], LABELS.astype(np.int32), LABELS / 2, np.eye(2), [0, 0], torch.zeros(2).long()],
    ids=str,
)
def test_an_image_set_refuses_other_labels(labels: Any) -> None:
    with pytest.raises(UserError, match=r"^labels: .* for 2 images; give \(2,\) int64 class indices"):
        ImageSet(IMAGES, labels)
    with pytest.raises(UserError, match=r"^sample_paths: 1 for 2 images"):
        ImageSet(IMAGES, LABELS, ("a.png",))


def splits(**changes: Any) -> Splits:
    part = ImageSet(IMAGES, LABELS)
    fields: dict[str, Any] = {"train": part, "test": part, "holdout": None, "class_names": ("cat", "dog")}
    fields |= {"mean": (0.5,) * 3, "std": (0.2,) * 3, **changes}
    return Splits(**fields)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train", None, "a NoneType is not a set of images; give an ImageSet"),
        ("test", ImageSet(IMAGES[:0], LABELS[:0]), "there are no images"),
        ("holdout", IMAGES, r"uint8 \(2, 4, 4, 3\) is not a set of images; give an ImageSet"),
        ("class_names", (), "there are none"),
        ("class_names", "cd", "give a list, not 'cd'"),
        ("mean", (0.5,), r"\(0.5,\); give 3 fractions of 1"),
        ("mean", (127.0,) * 3, "give 3 fractions of 1"),
        ("mean", (np.nan,) * 3, "give 3 fractions of 1"),
        ("mean", 0.5, "give 3 fractions of 1"),
        ("std", (0.0, 0.2, 0.2), "above 0"),
        ("std", (-0.2, 0.2, 0.2), "above 0"),
    ],
)
def test_splits_name_the_field_that_is_wrong(field: str, value: Any, message: str) -> None:
    splits()
    with pytest.raises(UserError, match=f"^{field}: .*{message}"):
        splits(**{field: value})


@pytest.mark.parametrize(("part", "name"), [("train", "training"), ("holdout", "held-out"), ("test", "test")])
@pytest.mark.parametrize("label", [-1, 2])
def test_labels_of_no_class_are_named_with_their_part(part: str, name: str, label: int) -> None:
    bad = splits(**{part: ImageSet(IMAGES, np.array([0, label]))})
    message = rf"^{name} labels: 1 are not in 0\.\.1, the first is {label} of image 1; give one class name"
    with pytest.raises(UserError, match=message):
        bad.check_labels()


# --- from arrays ---


def random_set(count: int, seed: int, side: int = 4) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(count) % 3)


def test_a_data_set_of_arrays_has_its_statistics_computed() -> None:
    train, test = random_set(30, 0), random_set(6, 1)
    splits = Splits.from_arrays(train, test)
    assert splits.class_names == ("0", "1", "2") and splits.holdout is None and splits.train is train
    pixels = train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(splits.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(splits.std, pixels.std(axis=0), rtol=1e-12)
    given = Splits.from_arrays(
        train, test, holdout=test, class_names=["a", "b", "c"], mean=[0.5] * 3, std=[0.2] * 3
    )
    assert given.class_names == ("a", "b", "c") and given.mean == (0.5,) * 3 and given.holdout is test


WRONG_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "a pair": (
        {"train": (IMAGES, LABELS)},
        r"train: a tuple is not an ImageSet; give ImageSet\(images, labels",
    ),
    "no test images": ({"test": random_set(0, 0)}, "test: there are no images"),
    "two sizes": ({"test": random_set(3, 0, side=5)}, "test: images of 5 x 5 pixels, and 4 x 4 in train"),
    "mean alone": ({"mean": [0.5] * 3}, "mean and std: give both or neither"),
    "two names": ({"class_names": ["a", "b"]}, r"training labels: 10 are not in 0\.\.1"),
    "a name twice": ({"class_names": list("aba")}, "class_names: 'a' is the name of labels 0 and 2; give"),
    "one name": ({"class_names": "ab"}, "class_names: give .*'ab'"),
    "one colour": ({"train": ImageSet(IMAGES, LABELS)}, "data.std: channel 0 has the same value"),
    "a low label": ({"holdout": ImageSet(IMAGES, LABELS - 1)}, "held-out labels: 2 are not in"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_arrays_that_do_not_fit_are_named(name: str) -> None:
    changes, message = WRONG_ARRAYS[name]
    arrays: dict[str, Any] = {"train": random_set(30, 0), "test": random_set(6, 1), **changes}
    with pytest.raises(UserError, match=message):
        Splits.from_arrays(**arrays)
