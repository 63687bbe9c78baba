"""`kernels.augment.op`: crop, flip, Cutout, normalisation and cast of a batch of 32×32 images, gathered from 50,000."""

from functools import partial

import torch

from benchmarks.kernels.case import Case
from kernels.augment.op import augment
from kernels.augment.reference import augment_reference
from pipeline.config import AugmentConfig
from pipeline.data.sampling.padded_crops import draw_padded_crops

_SIZE, _PADDING, _CUTOUT = 32, 4, 16
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def cases(device: torch.device, quick: bool) -> list[Case]:
    num_images, batch_sizes = (64, (8,)) if quick else (50_000, (512, 1024, 2048))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, _SIZE, _SIZE, 3), dtype=torch.uint8, generator=generator).to(
        device
    )
    epoch = draw_padded_crops(
        0, 0, num_images, (_SIZE, _SIZE), AugmentConfig(crop_padding=_PADDING, cutout=_CUTOUT)
    )
    draws, order = torch.from_numpy(epoch.table()).to(device), torch.from_numpy(epoch.order).to(device)
    made = []
    for batch_size in batch_sizes:
        settings = {
            "count": batch_size,
            "mean": _MEAN,
            "std": _STD,
            "padding": _PADDING,
            "cutout": _CUTOUT,
            "dtype": torch.float16,
        }
        made.append(
            Case(
                label=f"batch {batch_size}, fp16",
                kernel=partial(augment, **settings),
                reference=partial(augment_reference, **settings),
                reference_name="augment reference",
                inputs=[(images, part, draws) for part in order.split(batch_size) if len(part) == batch_size],
                batch_size=batch_size,
                precision="fp16",
                image_size=_SIZE,
            )
        )
    return made
