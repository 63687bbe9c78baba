"""Plans the batches of streamed files: random resized crops, of images whose size can change. Numpy only."""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipeline.config import AugmentConfig
from pipeline.data.sampling.batch_plan import BatchPlan, Shard, TrainSampler
from pipeline.data.sampling.philox import below
from pipeline.data.sampling.resized_crops import (
    ResizedCropDraws,
    draw_resized_crops,
    draw_resized_crops_of,
)


class StreamSampler(TrainSampler):
    """Plans batches of streamed files, with random resized crops. The image size can change during the run.

    Args:
        sizes: (N, 2) int32, height and width of each file's image.
        batch_size, shard, seed, augment, balance: as for `TrainSampler`.
        resolutions: pairs (first step of the run, height and width of the images from then on), ascending,
            the first at step 0.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        shard: Shard,
        seed: int,
        augment: AugmentConfig,
        resolutions: Sequence[tuple[int, int]],
        balance: np.ndarray | None = None,
    ):
        size = (resolutions[0][1], resolutions[0][1])
        super().__init__(len(sizes), batch_size, shard, seed, size, augment, balance)
        assert resolutions[0][0] == 0 and sorted(resolutions) == list(resolutions), f"{resolutions}"
        self.resolutions = tuple(resolutions)
        self._sizes = sizes
        self._init_arguments = (sizes, batch_size, shard, seed, augment, resolutions, balance)
        self._crops: dict[int, Future[ResizedCropDraws]] = {}
        self._thread = ThreadPoolExecutor(1, "draws")

    def __reduce__(self) -> tuple[object, ...]:
        return StreamSampler, self._init_arguments  # to a worker process, without the thread

    def image_size(self, epoch: int, step: int) -> int:
        """Return height and width of the images of a batch, in pixels."""
        run_step = epoch * self.steps_per_epoch + step
        return self.resolutions[bisect_right(self.resolutions, run_step, key=lambda item: item[0]) - 1][1]

    def _draw_crops(self, epoch: int) -> ResizedCropDraws:
        """Draw the crops of an epoch, a row for each slot."""
        samples = self.samples_of(epoch)
        sizes = self._sizes if samples is None else self._sizes[samples]
        return draw_resized_crops(self._seed, epoch, sizes, self._augment)

    def _crops_of(self, epoch: int) -> ResizedCropDraws:
        """Return the draws of an epoch, and begin those of the next: a million images take half a second."""
        for number in (epoch, epoch + 1):
            if number not in self._crops:
                self._crops[number] = self._thread.submit(self._draw_crops, number)
        self._crops = {
            number: draws for number, draws in self._crops.items() if epoch - 1 <= number <= epoch + 1
        }
        return self._crops[epoch].result()

    def plan(self, epoch: int, step: int) -> BatchPlan:
        size = self.image_size(epoch, step)
        slots, crops, flip, positions = self._crops_of_batch(epoch, step)
        box = cutout_side(self._augment.cutout, size, self.resolutions[-1][1])
        inside = self._augment.cutout_mode == "inside"
        corners = below(positions, size - box + 1) if inside else below(positions, size) - np.int32(box // 2)
        draws = np.concatenate([crops, flip[:, None], corners], axis=1, dtype=np.int32)
        draws = self._with_operations(draws, epoch, step)
        return BatchPlan(self._samples_in(slots, epoch), self._valid, draws, size)

    def _order_of(self, epoch: int) -> np.ndarray:
        crops = self._crops.get(epoch)  # not `_crops_of`: a batch is finished later than it is planned
        return super()._order_of(epoch) if crops is None else crops.result().order

    def _crops_of_batch(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return slots, boxes, flips, and positions of the Cutout boxes as uint64."""
        if self._repeats > 1:
            slots, showings = self.showings(epoch, step)
            sizes = self._sizes[self._samples_in(slots, epoch)]
            draws = draw_resized_crops_of(self._seed, slots, showings, sizes, self._augment)
            return slots, draws.boxes, draws.flip, draws.cutout.astype(np.uint64)
        draws = self._crops_of(epoch)
        slots, _ = self.showings(epoch, step)
        return slots, draws.boxes[slots], draws.flip[slots], draws.cutout[slots].astype(np.uint64)


def cutout_side(cutout: int, size: int, final_size: int) -> int:
    """Return the side of the Cutout box for images of SIZE pixels; CUTOUT is that for FINAL_SIZE pixels."""
    return round(cutout * size / final_size)
