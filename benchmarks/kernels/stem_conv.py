"""Time `stem_conv` and its gradient by the weight beside cuDNN's convolution, which casts the weight."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.stem_conv.op import stem_conv

_SIZE, _OUT_CHANNELS = 32, 64
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    torch.backends.cudnn.benchmark = True  # so that conv2d takes its fastest algorithm
    return [_case(device, batch_size) for batch_size in ((8,) if quick else (512, 1024, 2048))]


def _case(device: torch.device, batch_size: int) -> Case:
    generator = torch.Generator().manual_seed(0)

    def activation(channels: int) -> torch.Tensor:
        values = torch.randn(batch_size, channels, _SIZE, _SIZE, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    weight = (
        torch.randn(_OUT_CHANNELS, 3, 3, 3, generator=generator)
        .to(device, memory_format=torch.channels_last)
        .requires_grad_()
    )
    return Case(
        label=f"batch {batch_size}, fp16",
        kernel=stem_conv,
        reference=_conv2d,
        reference_name="conv2d",
        inputs=[(activation(_OUT_CHANNELS), activation(3), weight) for _ in range(_NUM_INPUTS)],
        batch_size=batch_size,
        precision="fp16",
        image_size=_SIZE,
        wrap=_with_gradient,
    )


def _conv2d(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(images, weight.to(images.dtype), padding=1)


def _with_gradient(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward_and_backward(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(function(images, weight), weight, dy)[0]

    return forward_and_backward
