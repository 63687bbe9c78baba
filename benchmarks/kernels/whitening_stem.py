"""Time `whitening_stem` and its gradient by the bias beside cuDNN's convolution and GELU."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.whitening_stem.op import whitening_stem

_SIZE, _OUT_CHANNELS = 32, 24
_ROW_CHANNELS = 32  # with the channels of zeros that a network asks for
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op, forward alone and with the gradient; one small case of each if `quick`."""
    torch.backends.cudnn.benchmark = True  # so that conv2d takes its fastest algorithm
    return [_case(device, 8 if quick else 1536, backward) for backward in (False, True)]


def _case(device: torch.device, batch_size: int, backward: bool) -> Case:
    generator = torch.Generator().manual_seed(0)

    def activation(channels: int, size: int) -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    weight = torch.randn(_OUT_CHANNELS, 3, 2, 2, generator=generator)
    weight = weight.to(device, memory_format=torch.channels_last)
    bias = torch.zeros(_OUT_CHANNELS, device=device).requires_grad_(backward)
    variant = "with its gradient" if backward else "forward alone"
    return Case(
        label=f"batch {batch_size}, fp16, {variant}",
        kernel=partial(whitening_stem, channels=_ROW_CHANNELS),
        reference=_conv2d,
        reference_name="conv2d and GELU",
        inputs=[
            (activation(_ROW_CHANNELS, _SIZE - 1), activation(3, _SIZE), weight, bias)
            for _ in range(_NUM_INPUTS)
        ],
        batch_size=batch_size,
        precision="fp16",
        image_size=_SIZE,
        variant=variant,
        wrap=_with_gradient if backward else _forward_alone,
    )


def _conv2d(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    y = F.gelu(F.conv2d(images, weight.to(images.dtype), bias.to(images.dtype)))
    return F.pad(y, (0, 0, 0, 0, 0, _ROW_CHANNELS - _OUT_CHANNELS))


def _forward_alone(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda dy, *arguments: function(*arguments)


def _with_gradient(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def forward_and_backward(
        dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return torch.autograd.grad(function(images, weight, bias), bias, dy)[0]

    return forward_and_backward
