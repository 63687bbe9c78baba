"""Which samples stand in which batch, on which process, with which draws. Numpy only; every loader backend follows it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.config import AugmentConfig, share
from pipeline.data.draws import EpochDraws, draw_epoch
from pipeline.errors import UserError


@dataclass(frozen=True)
class Shard:
    """This process among the processes of a run."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class BatchPlan:
    """One process's share of one batch.

    Attributes:
        indices: (B,) int64 sample ids.
        valid: (B,) bool, False for padding.
        draws: (B, 5) int32 as `EpochDraws.table`, or None where nothing is drawn (evaluation).
    """

    indices: np.ndarray
    valid: np.ndarray
    draws: np.ndarray | None


class Sampler(Protocol):
    """The plan of a data set's batches. See `TrainSampler` and `EvalSampler`."""

    steps_per_epoch: int
    num_samples: int
    local_batch_size: int

    def plan(self, epoch: int, step: int) -> BatchPlan: ...


class TrainSampler:
    """Shuffled global batches of equal size; the ragged rest of an epoch is dropped.

    Global batch `step` holds `order[step * batch_size : (step + 1) * batch_size]`, whatever the number of processes; rank r
    takes the r-th contiguous part of it.

    Raises:
        UserError: fewer samples than one batch, or a batch that the processes do not divide.
    """

    def __init__(self, num_samples: int, batch_size: int, shard: Shard, seed: int, image_size: tuple[int, int], augment: AugmentConfig):
        self.num_samples = num_samples
        self.local_batch_size = share(batch_size, shard.world_size, "data.batch_size")
        self.steps_per_epoch = num_samples // batch_size
        if not self.steps_per_epoch:
            raise UserError(f"data.batch_size: {batch_size} is more than the {num_samples} training images; use {num_samples} or less")
        self._batch_size = batch_size
        self._start = shard.rank * self.local_batch_size
        self._valid = np.ones(self.local_batch_size, bool)
        self._arguments = (seed, image_size, augment)
        self._drawn: dict[int, tuple[EpochDraws, np.ndarray]] = {}

    def _draw(self, epoch: int) -> tuple[EpochDraws, np.ndarray]:
        """Draws of an epoch and their table; those of the last two epochs are kept."""
        if epoch not in self._drawn:
            seed, image_size, augment = self._arguments
            draws = draw_epoch(seed, epoch, self.num_samples, image_size, augment)
            self._drawn = {**dict(list(self._drawn.items())[-1:]), epoch: (draws, draws.table())}
        return self._drawn[epoch]

    def plan(self, epoch: int, step: int) -> BatchPlan:
        draws, table = self._draw(epoch)
        first = step * self._batch_size + self._start
        indices = draws.order[first : first + self.local_batch_size]
        return BatchPlan(indices, self._valid, table[indices])


class EvalSampler:
    """Every sample once, in order of its id; the last global batch is filled up with sample 0, marked not valid."""

    def __init__(self, num_samples: int, batch_size: int, shard: Shard):
        self.num_samples = num_samples
        self.local_batch_size = share(batch_size, shard.world_size, "data.eval_batch_size")
        self.steps_per_epoch = -(-num_samples // batch_size)
        self._batch_size = batch_size
        self._start = shard.rank * self.local_batch_size

    def plan(self, epoch: int, step: int) -> BatchPlan:
        first = step * self._batch_size + self._start
        indices = np.arange(first, first + self.local_batch_size)
        valid = indices < self.num_samples
        return BatchPlan(np.where(valid, indices, 0), valid, None)


def plans_from(sampler: Sampler, epoch: int, step: int) -> Iterator[BatchPlan]:
    """The plans from (epoch, step) on, over epoch after epoch, without end."""
    while True:
        while step < sampler.steps_per_epoch:
            yield sampler.plan(epoch, step)
            step += 1
        epoch, step = epoch + 1, 0
