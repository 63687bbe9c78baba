"""Plans the batches of each process: samples and draws. All loaders follow these plans. Numpy only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipeline.config import AugmentConfig, share
from pipeline.data.sampling.balanced import draw_balanced
from pipeline.data.sampling.padded_crops import PaddedCropDraws, draw_padded_crops, draw_padded_crops_of
from pipeline.data.sampling.philox import draw_order
from pipeline.data.sampling.trivial_augment import draw_trivial_augment
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
        draws: (B, 5) or (B, 7) int32 as in `PaddedCropDraws.table`. For streamed files (B, 7) int32: top,
            left, height and width of the crop, flip, and the top left corner of the Cutout box in the output.
            With `augment.trivial_augment`, two more columns, those of `draw_trivial_augment`. None in
            evaluation.
        image_size: height and width of a streamed training batch, in pixels; None if the size never changes.
    """

    indices: np.ndarray
    valid: np.ndarray
    draws: np.ndarray | None
    image_size: int | None = None


class Sampler(Protocol):
    """The plans of all batches of a data set. See `TrainSampler`, `StreamSampler` and `EvalSampler`."""

    steps_per_epoch: int
    num_samples: int
    local_batch_size: int
    augmented: bool  # True if the plans have draws

    def plan(self, epoch: int, step: int) -> BatchPlan:
        """Return the plan of one batch; STEP is counted from 0 in each epoch."""
        ...


class TrainSampler:
    """Plans shuffled batches of equal size. The incomplete batch at the end of an epoch is dropped.

    Global batch `step` holds `order[step * batch_size : (step + 1) * batch_size]` for any number of
    processes. Rank r takes the r-th contiguous part of it. The order is one of slots, of which an epoch has
    as many as there are samples. Slot i shows sample i, or with `balance` the i-th of `draw_balanced`. The
    draws belong to the slot, so that an image that comes in several slots is shown in several ways.

    With R repeats (`augment.repeats`), a global batch holds the next batch_size / R slots of the order R
    times, one repetition after the other, so that images that are mixed are different ones. Repetition r of
    epoch e has the draws that a slot has in epoch e R + r without repeats.

    Args:
        num_samples: N, samples in the training set.
        batch_size: of all processes together.
        shard: this process among the others.
        seed: the run's seed.
        image_size: height and width of the output, in pixels.
        augment: what is switched on.
        balance: (N,) int64 labels, to show every class equally often; None: every sample once.

    Raises:
        UserError: fewer samples than one batch, or a batch size that the processes do not divide.
    """

    augmented = True

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        shard: Shard,
        seed: int,
        image_size: tuple[int, int],
        augment: AugmentConfig,
        balance: np.ndarray | None = None,
    ):
        self.num_samples = num_samples
        self.local_batch_size = share(batch_size, shard.world_size, "data.batch_size")
        self.steps_per_epoch = num_samples // batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f"data.batch_size: {batch_size} is more than the {num_samples} training images; "
                f"use {num_samples} or less"
            )
        self._batch_size = batch_size
        self._start = shard.rank * self.local_batch_size
        self._valid = np.ones(self.local_batch_size, bool)
        self._seed, self._image_size, self._augment = seed, image_size, augment
        self._repeats = augment.repeats
        share(batch_size, self._repeats, "data.batch_size", "showings of each image (augment.repeats)")
        self._drawn: dict[int, tuple[PaddedCropDraws, np.ndarray]] = {}
        self._orders: dict[int, np.ndarray] = {}
        self._balance = balance
        self._balanced: dict[int, np.ndarray] = {}

    def showings(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots of a batch, and the epochs whose draws they have: (B,) int64 each."""
        positions = self._start + np.arange(self.local_batch_size)
        repetition, place = np.divmod(positions, self._batch_size // self._repeats)
        slots = self._order_of(epoch)[step * (self._batch_size // self._repeats) + place]
        return slots, epoch * self._repeats + repetition

    def samples_of(self, epoch: int) -> np.ndarray | None:
        """Return the sample of each slot of an epoch, (N,) int64; None if slot i shows sample i.

        Those of the last three epochs are kept: crops are drawn an epoch ahead.
        """
        if self._balance is None:
            return None
        if epoch not in self._balanced:
            samples = draw_balanced(self._balance, self._seed, epoch)
            self._balanced = {**dict(list(self._balanced.items())[-2:]), epoch: samples}
        return self._balanced[epoch]

    def _samples_in(self, slots: np.ndarray, epoch: int) -> np.ndarray:
        """Return the samples that some slots of an epoch show."""
        samples = self.samples_of(epoch)
        return slots if samples is None else samples[slots]

    def _order_of(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch. Those of the last two epochs are kept."""
        if epoch in self._drawn:
            return self._drawn[epoch][0].order
        if epoch not in self._orders:
            order = draw_order(self._seed, epoch, self.num_samples)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return self._orders[epoch]

    def _with_operations(self, draws: np.ndarray, epoch: int, step: int) -> np.ndarray:
        """Add the columns of TrivialAugment to the draws of a batch, if it is switched on."""
        if not self._augment.trivial_augment:
            return draws
        operations = draw_trivial_augment(self._seed, *self.showings(epoch, step))
        return np.concatenate([draws, operations], axis=1, dtype=np.int32)

    def _draws_of(self, epoch: int) -> tuple[PaddedCropDraws, np.ndarray]:
        """Return the draws of an epoch and their table. Those of the last two epochs are kept."""
        if epoch not in self._drawn:
            size = self._image_size
            draws = draw_padded_crops(self._seed, epoch, self.num_samples, size, self._augment)
            self._drawn = {**dict(list(self._drawn.items())[-1:]), epoch: (draws, draws.table())}
        return self._drawn[epoch]

    def plan(self, epoch: int, step: int) -> BatchPlan:
        if self._repeats > 1:
            slots, showings = self.showings(epoch, step)
            arguments = self._seed, slots, showings, self._image_size, self._augment
            draws = draw_padded_crops_of(*arguments).table()
        else:
            _, table = self._draws_of(epoch)
            slots, _ = self.showings(epoch, step)
            draws = table[slots]
        draws = self._with_operations(draws, epoch, step)
        return BatchPlan(self._samples_in(slots, epoch), self._valid, draws)


class EvalSampler:
    """Plans batches with every sample once, in the order of the ids.

    The last global batch is filled up with sample 0, marked as not valid.
    """

    augmented = False

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
    """Yield the plans from (epoch, step) on, epoch after epoch, without end."""
    while True:
        while step < sampler.steps_per_epoch:
            yield sampler.plan(epoch, step)
            step += 1
        epoch, step = epoch + 1, 0
