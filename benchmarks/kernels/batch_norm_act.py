"""Time `batch_norm_act` with a residual, forward and backward, at the ends of the blocks of a ResNet-18."""

from collections.abc import Callable

import torch

from benchmarks.kernels.case import Case
from kernels.arguments import Norm
from kernels.batch_norm_act.op import batch_norm_act
from kernels.batch_norm_act.reference import batch_norm_act_reference

_STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, height and width
_BATCH_SIZE = 512
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    if quick:
        return [_case(device, 8, 16, 4)]
    return [_case(device, _BATCH_SIZE, channels, size) for channels, size in _STAGES]


def _case(device: torch.device, batch_size: int, channels: int, size: int) -> Case:
    generator = torch.Generator().manual_seed(0)

    def activation() -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    inputs = []
    for _ in range(_NUM_INPUTS):
        x, residual, gradient = activation().requires_grad_(), activation().requires_grad_(), activation()
        weight, bias = (torch.ones(channels, device=device).requires_grad_() for _ in range(2))
        norm = Norm(weight, bias, torch.zeros(channels, device=device), torch.ones(channels, device=device))
        inputs.append((gradient, x, norm, residual))
    return Case(
        label=f"{channels}×{size}×{size}, batch {batch_size}, fp16",
        kernel=batch_norm_act,
        reference=batch_norm_act_reference,
        reference_name="batch norm, add and ReLU",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=f"{channels}×{size}×{size}",
        wrap=_with_gradients,
    )


def _with_gradients(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradient: torch.Tensor, x: torch.Tensor, norm: Norm, residual: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        y = function(x, norm, residual)
        return torch.autograd.grad(y, (x, norm.weight, norm.bias, residual), gradient)

    return forward_and_backward
