"""Time `stem_conv_norm_act_twice`, forward and backward, beside cuDNN and `batch_norm_act_twice`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.arguments import Norm
from kernels.batch_norm_act.op import batch_norm_act_twice
from kernels.stem_conv_norm_act.op import stem_conv_norm_act_twice

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
    norm = Norm._make(torch.ones(_OUT_CHANNELS, device=device) for _ in range(4))
    leaves = (weight, norm.weight.requires_grad_(), norm.bias.requires_grad_())
    gradients = [(activation(_OUT_CHANNELS), activation(_OUT_CHANNELS)) for _ in range(_NUM_INPUTS)]
    return Case(
        label=f"batch {batch_size}, fp16",
        kernel=stem_conv_norm_act_twice,
        reference=_one_by_one,
        reference_name="conv2d and batch_norm_act",
        inputs=[(pair, leaves, activation(3), weight, norm) for pair in gradients],
        batch_size=batch_size,
        precision="fp16",
        image_size=_SIZE,
        wrap=_with_gradients,
    )


def _one_by_one(images: torch.Tensor, weight: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    return batch_norm_act_twice(F.conv2d(images, weight.to(images.dtype), padding=1), norm)


def _with_gradients(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradients: tuple[torch.Tensor, torch.Tensor],
        leaves: tuple[torch.Tensor, ...],
        *arguments: torch.Tensor | Norm,
    ) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(*arguments), leaves, gradients)

    return forward_and_backward
