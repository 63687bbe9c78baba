"""Time `augment`: gather, crop, flip, cut out, normalise and cast a batch of 32×32 images out of 50,000."""

from functools import partial

import torch

from benchmarks.kernels.case import Case
from kernels.augment.op import augment
from kernels.augment.reference import Augmentation, augment_reference
from pipeline.config import PlainAugment
from pipeline.data.sampling.padded_crops import draw_padded_crops

_SIZE, _PADDING, _CUTOUT = 32, 4, 16
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    num_images, batch_sizes = (64, (8,)) if quick else (50_000, (512, 1024, 2048))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, _SIZE, _SIZE, 3), dtype=torch.uint8, generator=generator).to(
        device
    )
    epoch = draw_padded_crops(
        0, 0, num_images, (_SIZE, _SIZE), PlainAugment(crop_padding=_PADDING, cutout=_CUTOUT)
    )
    draws, order = torch.from_numpy(epoch.table()).to(device), torch.from_numpy(epoch.order).to(device)
    augmentation = Augmentation(_MEAN, _STD, _PADDING, _CUTOUT, torch.float16)
    result = []
    for batch_size in batch_sizes:
        parts = [part for part in order.split(batch_size) if len(part) == batch_size]
        result.append(
            Case(
                label=f"batch {batch_size}, fp16",
                kernel=partial(augment, count=batch_size),
                reference=partial(augment_reference, count=batch_size),
                reference_name="augment reference",
                inputs=[(images, part, draws, augmentation) for part in parts],
                batch_size=batch_size,
                precision="fp16",
                image_size=_SIZE,
            )
        )
    return result
