"""Fills the boxes of random erasing in the batches of any loader, on their device."""

from dataclasses import replace

import torch

from pipeline.data.batch import Batch
from pipeline.data.sampling.batch_plan import TrainSampler
from pipeline.data.sampling.erasing import draw_erasing


class Erasing:
    """Erases a box of some images after normalisation.

    The box is 0 then, which is exactly the mean colour, as with torchvision's `RandomErasing`.

    Args:
        sampler: of the loader.
        seed: of the run.
        probability: of an image to have a box.
    """

    def __init__(self, sampler: TrainSampler, seed: int, probability: float):
        self._sampler, self._seed, self._probability = sampler, seed, probability

    def __call__(self, batch: Batch, epoch: int, step: int) -> Batch:
        """Return the batch of a step, with erased copies of its images; does not wait for the device."""
        images = batch.images
        height, width = images.shape[2:]
        samples, showings = self._sampler.showings(epoch, step)
        boxes = draw_erasing(self._seed, samples, showings, (height, width), self._probability)
        if not boxes.any():
            return batch
        on_host = torch.from_numpy(boxes)
        if images.is_cuda:
            on_host = on_host.pin_memory()
        top, left, box_height, box_width = on_host.to(images.device, non_blocking=True)[:, :, None].unbind(1)
        rows, columns = (torch.arange(extent, device=images.device) for extent in (height, width))
        in_rows = (rows >= top) & (rows < top + box_height)
        in_columns = (columns >= left) & (columns < left + box_width)
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        # `masked_fill` itself would not keep channels_last
        return replace(batch, images=images.clone().masked_fill_(inside, 0.0))
