"""Batch norm with residual and ReLU, forward and backward, on the activations at the end of the blocks of a ResNet-18."""

from collections.abc import Callable

import torch

from benchmarks.kernels.case import Case
from kernels.batch_norm_act.op import batch_norm_act
from kernels.batch_norm_act.reference import batch_norm_act_reference

_STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels, height and width
_BATCH_SIZE = 512
_SETS = 3  # of inputs


def cases(device: torch.device, quick: bool) -> list[Case]:
    return (
        [_case(device, 8, 16, 4)]
        if quick
        else [_case(device, _BATCH_SIZE, channels, size) for channels, size in _STAGES]
    )


def _case(device: torch.device, batch_size: int, channels: int, size: int) -> Case:
    generator = torch.Generator().manual_seed(0)

    def activation() -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    inputs = []
    for _ in range(_SETS):
        x, residual, gradient = activation().requires_grad_(), activation().requires_grad_(), activation()
        weight, bias = (torch.ones(channels, device=device).requires_grad_() for _ in range(2))
        inputs.append(
            (
                gradient,
                x,
                weight,
                bias,
                torch.zeros(channels, device=device),
                torch.ones(channels, device=device),
                residual,
            )
        )
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
        around=_with_gradients,
    )


def _with_gradients(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradient: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running_mean: torch.Tensor,
        running_var: torch.Tensor,
        residual: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        y = function(x, weight, bias, running_mean, running_var, residual)
        return torch.autograd.grad(y, (x, weight, bias, residual), gradient)

    return forward_and_backward
