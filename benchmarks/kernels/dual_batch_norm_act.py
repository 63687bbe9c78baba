"""Time `dual_batch_norm_act`, forward and backward, beside one `batch_norm_act` for each norm.

The activations are those where a ResNet-18 downsamples.
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.case import Case
from kernels.arguments import Norm
from kernels.batch_norm_act.op import batch_norm_act
from kernels.dual_batch_norm_act.op import dual_batch_norm_act

_STAGES = ((128, 16), (256, 8), (512, 4))  # channels, height and width
_BATCH_SIZE = 1024
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

    def norm() -> Norm:
        weight, bias = (torch.ones(channels, device=device).requires_grad_() for _ in range(2))
        return Norm(weight, bias, torch.zeros(channels, device=device), torch.ones(channels, device=device))

    return Case(
        label=f"{channels}×{size}×{size}, batch {batch_size}, fp16",
        kernel=dual_batch_norm_act,
        reference=_one_by_one,
        reference_name="batch_norm_act for each",
        inputs=[
            (activation(), activation().requires_grad_(), norm(), activation().requires_grad_(), norm())
            for _ in range(_NUM_INPUTS)
        ],
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=f"{channels}×{size}×{size}",
        wrap=_with_gradients,
    )


def _one_by_one(x: torch.Tensor, norm: Norm, residual: torch.Tensor, residual_norm: Norm) -> torch.Tensor:
    return batch_norm_act(x, norm, residual=batch_norm_act(residual, residual_norm, activation="none"))


def _with_gradients(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradient: torch.Tensor, x: torch.Tensor, norm: Norm, residual: torch.Tensor, residual_norm: Norm
    ) -> tuple[torch.Tensor, ...]:
        y = function(x, norm, residual, residual_norm)
        return torch.autograd.grad(y, (x, *norm[:2], residual, *residual_norm[:2]), gradient)

    return forward_and_backward
