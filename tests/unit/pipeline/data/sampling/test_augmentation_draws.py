"""Tests the draws of random erasing and TrivialAugment against torchvision's, and repeated augmentation."""

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms import v2

from pipeline.config import PlainAugment
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from pipeline.data.sampling.erasing import draw_erasing
from pipeline.data.sampling.padded_crops import draw_padded_crops
from pipeline.data.sampling.philox import philox_at, philox_blocks
from pipeline.data.sampling.resized_crops import draw_resized_crops
from pipeline.data.sampling.stream_plan import StreamSampler
from pipeline.data.sampling.trivial_augment import BINS, OPERATIONS, draw_trivial_augment, strengths_of
from pipeline.errors import UserError

MANY = np.arange(20_000)
FIRST = np.zeros_like(MANY)


# --- single blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_single_blocks_are_those_of_numpy(seed: int):
    epochs, blocks = np.array([0, 7, 2**40, 7]), np.array([3, 999, 0, 998])
    expected = [
        philox_blocks(seed, epoch, 5, 1000)[block] for epoch, block in zip(epochs, blocks, strict=True)
    ]
    assert (philox_at(seed, epochs, 5, blocks) == np.stack(expected)).all()


# --- erasing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (6, 6)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int]):
    """Compare quantiles of area, ratio and corner with 3,000 draws of torchvision's own transform."""
    torch.manual_seed(0)
    image, erasing = torch.zeros(3, *size), transforms.RandomErasing(p=1)
    drawn = [erasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0]) for _ in range(3000)]
    theirs = np.array([params[:4] for params in drawn])
    theirs = theirs[theirs[:, 2] < size[0]]  # the whole image: no try fits
    ours = draw_erasing(1, MANY, FIRST, size, 1.0)
    theirs, ours = (boxes[(boxes[:, 2:] > 0).all(1)] for boxes in (theirs, ours))
    assert len(ours) == pytest.approx(len(MANY) * len(theirs) / 3000, rel=0.02)
    for values in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
    ):
        limits = np.quantile(values(ours), [0.1, 0.3, 0.5, 0.7, 0.9])
        below = [(values(boxes)[:, None] <= limits).mean(0) for boxes in (theirs, ours)]
        np.testing.assert_allclose(below[0], below[1], atol=0.04)
    top, left, height, width = ours.T
    assert (top >= 0).all() and (top + height <= size[0]).all() and (left + width <= size[1]).all()
    assert top.min() == 0 and (top + height).max() == size[0]


def test_the_probability_is_that_of_a_box_and_boxes_follow_seed_and_showing():
    boxes = draw_erasing(1, MANY, FIRST, (32, 32), 0.1)
    always = draw_erasing(1, MANY, FIRST, (32, 32), 1.0)
    erased = boxes[:, 2] > 0
    assert (
        abs(erased.mean() - 0.1) < 0.01
        and (boxes[erased] == always[erased]).all()
        and not boxes[~erased].any()
    )
    assert (draw_erasing(1, MANY[::-1], FIRST, (32, 32), 1.0) == always[::-1]).all()
    for other in (
        draw_erasing(2, MANY, FIRST, (32, 32), 1.0),
        draw_erasing(1, MANY, FIRST + 1, (32, 32), 1.0),
    ):
        assert (other != always).any(axis=1).mean() > 0.95


# --- TrivialAugment -------------------------------------------------------------------------------------


def test_every_operation_and_strength_is_as_likely():
    draws = draw_trivial_augment(1, MANY, FIRST)
    strength = np.where(draws[:, 1] < 0, -1 - draws[:, 1], draws[:, 1])
    for values, number in ((draws[:, 0], len(OPERATIONS)), (strength, BINS), (draws[:, 1] < 0, 2)):
        counts = np.bincount(values.astype(int), minlength=number)
        assert len(counts) == number and abs(counts / counts.mean() - 1).max() < 0.2
    assert abs(np.corrcoef(draws[:, 0], strength)[0, 1]) < 0.03
    assert (draw_trivial_augment(1, MANY[5:9], FIRST[5:9]) == draws[5:9]).all()
    assert (draw_trivial_augment(1, MANY, FIRST + 1) != draws).any(axis=1).mean() > 0.9


def test_strengths_are_torchvisions():
    space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
    assert [name.lower() for name in space] == [name.replace("_", "") for name in OPERATIONS]
    for number, (name, (strengths, signed)) in enumerate(space.items()):
        theirs = strengths(BINS, 224, 224)
        theirs = torch.zeros(BINS) if theirs is None else theirs.float()
        theirs = theirs * 255 if name == "Solarize" else theirs
        theirs = theirs.int() if name.startswith("Translate") else theirs  # pixels of the shift
        bins = np.arange(BINS)
        for direction, draws in ((1, bins), (-1 if signed else 1, -1 - bins)):
            ours = strengths_of(np.stack([np.full(BINS, number), draws], axis=1))
            # half of 32 pixels is 15.999999 in torchvision, which is cut to 15
            atol = 1 if name.startswith("Translate") else 1e-4
            np.testing.assert_allclose(ours, direction * theirs.numpy(), rtol=1e-5, atol=atol, err_msg=name)


# --- repeats --------------------------------------------------------------------------------------------

AUGMENT = PlainAugment(crop_padding=2, cutout=4, repeats=3, trivial_augment=True, brightness=0.1)
SIZES = np.random.default_rng(0).integers(20, 90, (40, 2)).astype(np.int32)


def sampler(kind: str, shard: Shard | None = None, batch_size: int = 12, repeats: int = 3) -> TrainSampler:
    augment = AUGMENT.model_copy(update={"repeats": repeats})
    if kind == "memory":
        return TrainSampler(40, batch_size, shard or Shard(), 5, (8, 8), augment)
    streamed = augment.model_copy(update={"brightness": 0.0, "flip": "alternating"})
    return StreamSampler(SIZES, batch_size, shard or Shard(), 5, streamed, [(0, 16), (4, 32)])


@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_a_batch_shows_each_of_its_images_as_often_and_in_other_ways(kind: str):
    repeated = sampler(kind)
    seen = []
    for step in range(repeated.steps_per_epoch):
        plan = repeated.plan(2, step)
        assert plan.draws is not None
        images = plan.indices.reshape(3, 4)
        assert (images == images[0]).all() and len(set(images[0])) == 4
        draws = plan.draws.reshape(3, 4, -1)
        assert all((draws[a] != draws[b]).any(1).all() for a, b in ((0, 1), (1, 2)))
        seen += list(images[0])
    assert repeated.steps_per_epoch == 3 and len(seen) == len(set(seen)) == 12


def test_a_repetition_has_the_draws_of_an_epoch_of_its_own():
    """Epoch e, repetition r of three: those of epoch 3 e + r without repeats."""
    plan, streamed = sampler("memory").plan(2, 1), sampler("streamed").plan(2, 1)
    augment = AUGMENT.model_copy(update={"flip": "alternating"})
    for repetition in range(3):
        slots = slice(4 * repetition, 4 * repetition + 4)
        epoch = 6 + repetition
        table = draw_padded_crops(5, epoch, 40, (8, 8), AUGMENT).table()
        operations = draw_trivial_augment(5, plan.indices[slots], np.full(4, epoch))
        assert plan.draws is not None and streamed.draws is not None
        assert (plan.draws[slots] == np.concatenate([table[plan.indices[slots]], operations], axis=1)).all()
        crops = draw_resized_crops(5, epoch, SIZES, augment)
        indices = streamed.indices[slots]
        assert (streamed.draws[slots, :4] == crops.boxes[indices]).all()
        assert (streamed.draws[slots, 4] == crops.flip[indices]).all()


@pytest.mark.parametrize("kind", ["memory", "streamed"])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_do_not_depend_on_processes_or_on_what_was_planned_before(kind: str, repeats: int):
    alone = sampler(kind, repeats=repeats)
    for world_size in (2, 3, 4):
        parts = [sampler(kind, Shard(rank, world_size), repeats=repeats) for rank in range(world_size)]
        for epoch, step in ((1, 2), (0, 0), (3, 1)):
            whole, shares = alone.plan(epoch, step), [part.plan(epoch, step) for part in parts]
            assert (np.concatenate([share.indices for share in shares]) == whole.indices).all()
            joined = np.concatenate([share.draws for share in shares if share.draws is not None])
            assert (joined == whole.draws).all()
            showings = [
                np.concatenate(both) for both in zip(*(p.showings(epoch, step) for p in parts), strict=True)
            ]
            assert all((a == b).all() for a, b in zip(showings, alone.showings(epoch, step), strict=True))


def test_neighbours_that_are_mixed_are_different_images():
    plan = sampler("memory").plan(0, 0)
    assert (plan.indices[::2] != plan.indices[1::2]).all()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        UserError, match=r"data\.batch_size: 10 .*showings of each image \(augment\.repeats\); use"
    ):
        sampler("memory", batch_size=10)
