"""Draw the order and the augmentation of a whole epoch on the device, one Philox block for each sample.

Shapes: N samples.

Sample i of stream s reads the block of Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3") with key (seed, epoch) and counter (i + 1, 0, 0, s). numpy's `Philox(key, counter=(0, 0, 0, s))`
gives this block as words 4 i to 4 i + 3. Stream 0: word 0 is the sample's sort key, and the order of the
epoch is the samples sorted by it. Stream 1: the high and the low half of word 0 are crop_y and crop_x, bit 0
of word 1 is flip, the high and the low half of word 2 are cutout_y and cutout_x. A half becomes an integer
below a limit by multiply and shift. An alternating flip is that of epoch 0, inverted in odd epochs. The high
and the low half of word 3, read as int32, are the changes of brightness and contrast.
"""

import torch

from kernels.epoch_draws.forward import launch
from kernels.epoch_draws.reference import DrawRanges


def epoch_draws(
    seed: int, epoch: int, num_samples: int, ranges: DrawRanges, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order and the draws of one epoch; nothing waits for the device.

    Args:
        seed: below 2**63.
        epoch: below 2**63.
        num_samples: N.
        ranges: the limits of the draws.
        device: the device of the results, which must be the current device.

    Returns:
        order (N,) int64, the sample ids in the order of the epoch, and draws (N, 5) int32 by sample id:
        crop_y, crop_x, flip, cutout_y, cutout_x; (N, 7) with `ranges.jitter`: shift and change follow.
    """
    keys, draws = launch(seed, epoch, num_samples, ranges, device)
    return keys.argsort(stable=True), draws
