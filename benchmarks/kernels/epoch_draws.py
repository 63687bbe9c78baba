"""Time `epoch_draws` for 50,000 samples beside drawing with numpy and copying to the device."""

import torch

from benchmarks.kernels.case import Case
from kernels.epoch_draws.op import epoch_draws
from kernels.epoch_draws.reference import DrawRanges
from pipeline.config import PlainAugment
from pipeline.data.sampling.padded_crops import draw_padded_crops

_SIZE, _PADDING, _CUTOUT = 32, 4, 16
_EPOCHS = 16


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    num_samples = 64 if quick else 50_000
    ranges = DrawRanges((_SIZE, _SIZE), _PADDING, flip=True, cutout=_CUTOUT, inside=False)
    augment = PlainAugment(crop_padding=_PADDING, cutout=_CUTOUT)

    def kernel(epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return epoch_draws(0, epoch, num_samples, ranges, device)

    def numpy_and_copy(epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        draws = draw_padded_crops(0, epoch, num_samples, (_SIZE, _SIZE), augment)
        return torch.from_numpy(draws.order).to(device), torch.from_numpy(draws.table()).to(device)

    return [
        Case(
            label=f"{num_samples} samples",
            kernel=kernel,
            reference=numpy_and_copy,
            reference_name="numpy and a copy",
            inputs=[(epoch,) for epoch in range(_EPOCHS)],
            batch_size=num_samples,
            precision="int32",
            image_size=_SIZE,
            on_host=True,
        )
    ]
