"""Tests the balanced sampler: equal classes, fair within a class, a pure function of seed and epoch."""

from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.config import AugmentConfig, PlainAugment
from pipeline.data.sampling.balanced import draw_balanced
from pipeline.data.sampling.batch_plan import BatchPlan, Shard, TrainSampler
from pipeline.data.sampling.padded_crops import draw_padded_crops
from pipeline.data.sampling.resized_crops import draw_resized_crops
from pipeline.data.sampling.stream_plan import StreamSampler

AUGMENT = PlainAugment(crop_padding=2, flip=True, cutout=4)
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [40, 11, 3, 9]))
SIZES = np.random.default_rng(1).integers(20, 90, (len(LABELS), 2), dtype=np.int32)


@pytest.mark.parametrize("counts", [[40, 11, 3, 0, 9], [1, 1, 100], [5, 5], [7]], ids=str)
def test_classes_come_equally_often_and_images_within_a_class_too(counts: list[int]):
    labels = np.random.default_rng(2).permutation(np.repeat(np.arange(len(counts)), counts))
    for epoch in range(5):
        samples = draw_balanced(labels, 3, epoch)
        assert len(samples) == len(labels)
        drawn = np.bincount(labels[samples], minlength=len(counts))[np.array(counts) > 0]
        assert drawn.max() - drawn.min() <= 1
        times = np.bincount(samples, minlength=len(labels))
        for label in range(len(counts)):
            of_class = times[labels == label]
            assert not len(of_class) or of_class.max() - of_class.min() <= 1


def test_over_many_epochs_every_image_of_a_class_comes_equally_often():
    drawn = np.concatenate([draw_balanced(LABELS, 0, epoch) for epoch in range(400)])
    times = np.bincount(drawn, minlength=len(LABELS))
    for label in (0, 1):  # 63 / 4 draws an epoch, of 40 and of 11 images
        of_class = times[label == LABELS] / 400
        assert abs(of_class - 63 / 4 / len(of_class)).max() < 0.12


def test_the_draws_differ_by_seed_and_epoch_and_are_the_same_again():
    first = draw_balanced(LABELS, 3, 7)
    assert (first == draw_balanced(LABELS, 3, 7)).all()
    for seed, epoch in ((4, 7), (3, 8)):
        assert (first != draw_balanced(LABELS, seed, epoch)).any()


def padded(shard: Shard) -> TrainSampler:
    return TrainSampler(len(LABELS), 6, shard, 5, (8, 8), AUGMENT, LABELS)


def streamed(shard: Shard) -> StreamSampler:
    return StreamSampler(SIZES, 6, shard, 5, AUGMENT, [(0, 16), (8, 32)], LABELS)


def rows(samplers: Sequence[TrainSampler], epoch: int) -> list[tuple[int, ...]]:
    """Return sample and draws of every place of the global batches."""
    plans: list[BatchPlan] = [
        sampler.plan(epoch, step) for step in range(samplers[0].steps_per_epoch) for sampler in samplers
    ]
    assert all(plan.draws is not None for plan in plans)
    return [
        (int(index), *draws.tolist())
        for plan in plans
        for index, draws in zip(plan.indices, plan.draws, strict=True)  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("build", [padded, streamed])
def test_the_sequence_does_not_depend_on_the_processes(build):
    alone = [rows([build(Shard())], epoch) for epoch in range(3)]
    for world_size in (2, 3):
        together = [build(Shard(rank, world_size)) for rank in range(world_size)]
        assert [rows(together, epoch) for epoch in range(3)] == alone
        assert rows([build(Shard(rank, world_size)) for rank in range(world_size)], 2) == alone[2]  # resumed


@pytest.mark.parametrize("streams", [False, True], ids=["padded", "streamed"])
def test_repeats_show_the_images_of_the_slots(streams: bool):
    """With `augment.repeats` and TrivialAugment a slot comes twice in a batch, with draws of its own."""
    augment = PlainAugment(crop_padding=2, repeats=2, trivial_augment=True)
    if streams:
        sampler: TrainSampler = StreamSampler(SIZES, 6, Shard(), 5, augment, [(0, 16)], LABELS)
    else:
        sampler = TrainSampler(len(LABELS), 6, Shard(), 5, (8, 8), augment, LABELS)
    samples = draw_balanced(LABELS, 5, 1)
    for step in range(sampler.steps_per_epoch):
        plan, (slots, showings) = sampler.plan(1, step), sampler.showings(1, step)
        assert (plan.indices == samples[slots]).all() and (slots[:3] == slots[3:]).all()
        assert showings.tolist() == [2, 2, 2, 3, 3, 3]
        assert plan.draws is not None and (plan.draws[:3] != plan.draws[3:]).any()
        if streams:
            assert (plan.draws[:, :2] + plan.draws[:, 2:4] <= SIZES[plan.indices]).all()


@pytest.mark.parametrize("build", [padded, streamed])
def test_a_repeated_image_is_shown_in_several_ways(build):
    of_rare = [draws for sample, *draws in rows([build(Shard())], 0) if LABELS[sample] == 2]
    assert len(of_rare) > 9 and len({tuple(draws) for draws in of_rare}) > len(of_rare) // 2


def test_the_draws_are_those_of_the_slot():
    order, samples = draw_padded_crops(5, 1, len(LABELS), (8, 8), AUGMENT), draw_balanced(LABELS, 5, 1)
    plan = padded(Shard()).plan(1, 2)
    slots = order.order[12:18]
    assert plan.draws is not None
    assert (plan.indices == samples[slots]).all() and (plan.draws == order.table()[slots]).all()


@pytest.mark.parametrize("augment", [AUGMENT, PlainAugment(crop_scale=(0.9, 1.0), crop_ratio=(1.0, 1.0))])
def test_the_box_of_a_slot_is_inside_the_image_that_it_shows(augment: AugmentConfig):
    sampler = StreamSampler(SIZES, 6, Shard(), 5, augment, [(0, 16)], LABELS)
    samples = draw_balanced(LABELS, 5, 0)
    boxes = draw_resized_crops(5, 0, SIZES[samples], augment).boxes
    for step in range(sampler.steps_per_epoch):
        plan = sampler.plan(0, step)
        assert plan.draws is not None
        assert (plan.draws[:, :2] + plan.draws[:, 2:4] <= SIZES[plan.indices]).all()
        assert {tuple(box) for box in plan.draws[:, :4].tolist()} <= {tuple(box) for box in boxes.tolist()}
