"""Tests the crops of streamed images, and their batches."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.config import AugmentConfig, PlainAugment, load_config
from pipeline.data.sampling import resized_crops as crops
from pipeline.data.sampling.batch_plan import Shard
from pipeline.data.sampling.progressive import training_resolutions
from pipeline.data.sampling.resized_crops import CentreView, draw_resized_crops
from pipeline.data.sampling.stream_plan import StreamSampler
from pipeline.errors import UserError

AUGMENT = PlainAugment()
SIZES = np.array(
    [[375, 500], [500, 375], [64, 64], [1, 1], [10, 1000], [1000, 10], [9000, 12000], [2, 3]], np.int32
)
MANY = np.tile(SIZES, (1000, 1))


def test_boxes_lie_inside_and_keep_to_scale_and_ratio():
    draws = draw_resized_crops(3, 0, MANY, AUGMENT)
    assert sorted(draws.order.tolist()) == list(range(len(MANY)))
    top, left, height, width = draws.boxes.T
    assert (draws.boxes[:, :2] >= 0).all() and (draws.boxes[:, 2:] >= 1).all()
    assert (top + height <= MANY[:, 0]).all() and (left + width <= MANY[:, 1]).all()
    usual = np.isin(np.arange(len(MANY)) % len(SIZES), (0, 1, 2, 6))
    share, ratio = (height * width / MANY.prod(1, dtype=np.int64))[usual], (width / height)[usual]
    assert 0.07 < share.min() < 0.1 and 0.99 < share.max() <= 1.0
    assert 0.72 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.37
    assert 0.48 < draws.flip.mean() < 0.52
    assert not draw_resized_crops(3, 0, SIZES, PlainAugment(flip=False)).flip.any()


@pytest.mark.parametrize("size", [(375, 500), (333, 250), (40, 120)])
def test_boxes_are_distributed_as_torchvision_s(size: tuple[int, int]):
    ours = draw_resized_crops(1, 0, np.tile(np.array(size, np.int32), (4000, 1)), AUGMENT).boxes
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    draw = v2.RandomResizedCrop(8)
    theirs = [draw.make_params([image]) for _ in range(4000)]
    theirs = np.array([[box[key] for key in ("top", "left", "height", "width")] for box in theirs])
    spread = theirs.std(0) / math.sqrt(4000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread).all()
    assert (np.abs(ours.std(0) / theirs.std(0) - 1) < 0.06).all()


def test_where_no_try_fits_the_box_is_the_largest_centred_one():
    boxes = draw_resized_crops(0, 0, np.array([[10, 1000], [1000, 10], [1, 1]], np.int32), AUGMENT).boxes
    assert boxes.tolist() == [[0, 493, 10, 13], [493, 0, 13, 10], [0, 0, 1, 1]]


def test_draws_depend_on_seed_epoch_and_sample_alone(monkeypatch: pytest.MonkeyPatch):
    draws = draw_resized_crops(3, 1, MANY, AUGMENT)
    monkeypatch.setattr(crops, "_CHUNK", 7)
    again = draw_resized_crops(3, 1, MANY[:900], AUGMENT)
    for name in ("boxes", "flip", "cutout"):
        assert (getattr(again, name) == getattr(draws, name)[:900]).all()
    for seed, epoch in ((3, 0), (4, 1)):
        assert (draw_resized_crops(seed, epoch, MANY[:900], AUGMENT).boxes != again.boxes).any()


def sampler(
    shard: Shard | None = None, batch_size: int = 6, augment: AugmentConfig = AUGMENT
) -> StreamSampler:
    return StreamSampler(MANY[:40], batch_size, shard or Shard(), 5, augment, [(0, 16), (8, 32)])


def sequence(world_size: int, epoch: int, augment: AugmentConfig = AUGMENT) -> list[tuple[int, ...]]:
    """Return (index, crop, flip, Cutout box) of every sample, in the order of the global batches."""
    samplers = [sampler(Shard(rank, world_size), augment=augment) for rank in range(world_size)]
    rows = []
    for step in range(samplers[0].steps_per_epoch):
        for one in samplers:
            plan = one.plan(epoch, step)
            assert plan.draws is not None and plan.image_size == (
                32 if epoch * one.steps_per_epoch + step >= 8 else 16
            )
            rows += [
                (index, *draws)
                for index, draws in zip(plan.indices.tolist(), plan.draws.tolist(), strict=True)
            ]
    return rows


def test_the_sequence_of_an_epoch_does_not_depend_on_the_processes():
    augment = PlainAugment(cutout=8)
    for epoch in (0, 1):
        alone = sequence(1, epoch, augment)
        assert sequence(2, epoch, augment) == sequence(3, epoch, augment) == alone
        indices = [row[0] for row in alone]
        assert len(set(indices)) == len(indices) == 36  # each at most once; the incomplete batch is dropped
    assert sequence(1, 0) != sequence(1, 1)


def test_a_plan_can_be_asked_for_anywhere_and_in_another_process():
    through = [sampler().plan(epoch, step) for epoch in range(3) for step in range(6)]
    late = pickle.loads(pickle.dumps(sampler()))
    for number in (17, 3, 9, 0):
        plan = late.plan(*divmod(number, 6))
        assert (plan.indices == through[number].indices).all() and (plan.draws == through[number].draws).all()


@pytest.mark.parametrize("mode", ["clipped", "inside"])
def test_cutout_grows_with_the_image(mode: str):
    augment = PlainAugment.model_validate({"cutout": 8, "cutout_mode": mode})
    one = sampler(augment=augment)
    for epoch, side, size in ((0, 4, 16), (2, 8, 32)):
        places = np.array([one.plan(epoch, step).draws for step in range(6)])[..., 5:]
        low, high = (-side // 2, size - 1 - side // 2) if mode == "clipped" else (0, size - side)
        assert places.min() >= low and places.max() <= high and np.ptp(places) > size / 2


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (300, 300), (31, 20), (1, 1), (100, 901)])
@pytest.mark.parametrize("share", [0.875, 1.0])
def test_the_centre_is_torchvision_s(size: tuple[int, int], share: float):
    """One resize with a box reads the same part of the image as torchvision's resize and then crop."""
    view = CentreView(28, share)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = v2.CenterCrop(28)(v2.Resize(round(28 / share))(image))
    top, left, bottom, right = view.boxes(np.array([size], np.int32))[0].tolist()
    actual = image.resize((28, 28), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    assert np.abs(np.asarray(actual).astype(int) - np.asarray(expected)).max() <= 1


def test_resolutions_in_steps():
    def resolutions(progressive: str, *more: str) -> object:
        return training_resolutions(
            load_config(
                overrides=[
                    "data.dataset=folder",
                    "data.image_size=64",
                    f"augment.progressive={progressive}",
                    *more,
                ]
            ),
            10,
        )

    assert resolutions("[]") == ((0, 64),)
    assert resolutions("[[0%, 32], [75%, 64]]", "duration=4ep") == ((0, 32), (30, 64))
    assert resolutions("[[2ep, 32], [25st, 64]]") == ((0, 64), (20, 32), (25, 64))
    with pytest.raises(
        UserError,
        match=r"^augment\.progressive: 3ep \(step 30\), 2ep \(step 20\) .*; give the earliest first",
    ):
        resolutions("[[3ep, 32], [2ep, 64]]")
    for late in ("4ep", "40st", "100%", "5ep"):
        with pytest.raises(
            UserError, match=r"^augment\.progressive: .* is not before the end of the run, 4ep \(step 40\)"
        ):
            resolutions(f"[[0ep, 32], [{late}, 64]]", "duration=4ep")


def test_alternating_flips_of_streamed_images_turn_in_every_epoch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crops, "_CHUNK", 7)
    alternating = PlainAugment(flip="alternating")
    first, second = (draw_resized_crops(3, epoch, MANY[:100], alternating).flip for epoch in (0, 1))
    assert np.array_equal(first, draw_resized_crops(3, 0, MANY[:100], AUGMENT).flip)
    assert np.array_equal(second, ~first)
