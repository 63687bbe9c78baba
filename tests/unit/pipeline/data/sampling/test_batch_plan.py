"""Tests the samples of each batch: coverage, and equality over world sizes, ragged sizes and epochs."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PlainAugment, share
from pipeline.data.sampling.batch_plan import BatchPlan, EvalSampler, Shard, TrainSampler, plans_from
from pipeline.data.sampling.padded_crops import draw_padded_crops
from pipeline.errors import UserError

AUGMENT = PlainAugment(crop_padding=2, flip=True, cutout=4)
WORLD_SIZES = (1, 2, 3)


def train_sampler(
    num_samples: int, batch_size: int, shard: Shard | None = None, seed: int = 0
) -> TrainSampler:
    return TrainSampler(num_samples, batch_size, shard or Shard(), seed, (8, 8), AUGMENT)


def gather(plans: list[BatchPlan]) -> BatchPlan:
    """Join the ranks' shares to the global batch."""
    draws = [plan.draws for plan in plans if plan.draws is not None]
    indices, valid = (
        np.concatenate([plan.indices for plan in plans]),
        np.concatenate([plan.valid for plan in plans]),
    )
    return BatchPlan(indices, valid, np.concatenate(draws) if draws else None)


def epoch_of(
    world_size: int, num_samples: int, batch_size: int, epoch: int = 0, train: bool = True
) -> list[BatchPlan]:
    """Return the global batches of an epoch."""
    shards = [Shard(rank, world_size) for rank in range(world_size)]
    samplers = [
        train_sampler(num_samples, batch_size, s) if train else EvalSampler(num_samples, batch_size, s)
        for s in shards
    ]
    (steps,) = {sampler.steps_per_epoch for sampler in samplers}
    return [gather([sampler.plan(epoch, step) for sampler in samplers]) for step in range(steps)]


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("num_samples", [6, 7, 59, 60, 61])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_training_sees_each_sample_at_most_once_an_epoch(world_size: int, num_samples: int, epoch: int):
    batches = epoch_of(world_size, num_samples, 6, epoch)
    seen = np.concatenate([batch.indices for batch in batches])
    assert len(seen) == len(set(seen)) == num_samples // 6 * 6
    assert set(seen) <= set(range(num_samples))
    assert all(batch.valid.all() for batch in batches)


@pytest.mark.parametrize("num_samples", [7, 60, 61])
def test_global_batches_are_the_same_whatever_the_world_size(num_samples: int):
    alone, *others = (epoch_of(world_size, num_samples, 6, epoch=2) for world_size in WORLD_SIZES)
    for batches in others:
        for one, other in zip(alone, batches, strict=True):
            assert (one.indices == other.indices).all()
            assert one.draws is not None and other.draws is not None
            assert (one.draws == other.draws).all()


def test_batches_follow_the_draws():
    draws = draw_padded_crops(5, 3, 20, (8, 8), AUGMENT)
    sampler = train_sampler(20, 6, seed=5)
    for step in range(3):
        plan = sampler.plan(3, step)
        assert (plan.indices == draws.order[6 * step : 6 * step + 6]).all()
        assert plan.draws is not None
        assert (plan.draws == draws.table()[plan.indices]).all()


def test_epochs_differ():
    assert any(
        (one.indices != other.indices).any()
        for one, other in zip(epoch_of(1, 60, 6), epoch_of(1, 60, 6, epoch=1), strict=True)
    )


@pytest.mark.parametrize("num_samples", [1, 5, 6, 7, 59, 60, 61])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_evaluation_sees_each_sample_exactly_once(world_size: int, num_samples: int):
    batches = epoch_of(world_size, num_samples, 6, train=False)
    assert all(len(batch.indices) == 6 and batch.draws is None for batch in batches)
    assert np.concatenate([batch.indices[batch.valid] for batch in batches]).tolist() == list(
        range(num_samples)
    )
    padding = np.concatenate([batch.indices[~batch.valid] for batch in batches])
    assert not padding.any()  # sample 0, which every set has


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 6))
def test_coverage_of_any_size(num_samples: int, local_batch_size: int, world_size: int):
    batch_size = local_batch_size * world_size
    seen = [
        batch.indices[batch.valid] for batch in epoch_of(world_size, num_samples, batch_size, train=False)
    ]
    assert np.concatenate(seen).tolist() == list(range(num_samples))
    if num_samples >= batch_size:
        seen = np.concatenate([batch.indices for batch in epoch_of(world_size, num_samples, batch_size)])
        assert len(set(seen)) == len(seen) == num_samples // batch_size * batch_size


def test_plans_go_on_over_the_epochs():
    sampler = train_sampler(20, 6)
    actual = list(islice(plans_from(sampler, 4, 2), 5))
    expected = [sampler.plan(*position) for position in ((4, 2), (5, 0), (5, 1), (5, 2), (6, 0))]
    assert [plan.indices.tolist() for plan in actual] == [plan.indices.tolist() for plan in expected]
    after_the_last = next(plans_from(sampler, 4, 3))
    assert (after_the_last.indices == sampler.plan(5, 0).indices).all()


@pytest.mark.parametrize(
    ("batch_size", "world_size", "sizes"), [(512, 3, "510 or 513"), (7, 2, "6 or 8"), (2, 3, "3")]
)
def test_a_batch_that_does_not_divide_names_the_sizes_that_do(batch_size: int, world_size: int, sizes: str):
    with pytest.raises(UserError) as caught:
        share(batch_size, world_size, "data.batch_size")
    assert (
        str(caught.value) == f"data.batch_size: {batch_size} images do not divide by {world_size} processes; "
        f"use data.batch_size={sizes}"
    )
    with pytest.raises(UserError, match=r"data\.eval_batch_size: 7 images"):
        EvalSampler(10, 7, Shard(1, 2))


def test_fewer_samples_than_a_batch():
    with pytest.raises(
        UserError, match=r"data.batch_size: 6 is more than the 5 training images; use 5 or less"
    ):
        train_sampler(5, 6)
