"""Time `pool_norm_act`, forward and backward, at the heads of the groups of the networks of airbench.

In speednet94 one layer reads the output, in speednet96 two.
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.case import Case
from kernels.arguments import Activation, Norm
from kernels.pool_norm_act.op import pool_norm_act, pool_norm_act_twice
from kernels.pool_norm_act.reference import pool_norm_act_reference

# Batch, channels, height and width of the convolution's output, activation, layers that read y
_CASES: tuple[tuple[int, int, int, Activation, int], ...] = (
    *((1536, channels, size, "silu", 1) for channels, size in ((64, 31), (256, 15), (256, 7))),
    *((1024, channels, size, "gelu", 2) for channels, size in ((128, 31), (384, 15), (512, 7))),
)
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    if quick:
        return [_case(device, 8, 16, 5, "gelu", 2)]
    return [_case(device, *case) for case in _CASES]


def _case(
    device: torch.device, batch_size: int, channels: int, size: int, activation: Activation, uses: int
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def values(size: int) -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    norm = Norm._make(torch.ones(channels, device=device) for _ in range(4))
    norm.bias.requires_grad_()
    inputs = [
        ([values(size // 2) for _ in range(uses)], values(size).requires_grad_(), norm, activation)
        for _ in range(_NUM_INPUTS)
    ]
    variant = f"{channels}×{size}×{size} {activation}"
    return Case(
        label=f"{variant}, {uses} gradients, batch {batch_size}, fp16",
        kernel=_kernel if uses == 1 else pool_norm_act_twice,
        reference=_reference if uses == 1 else _reference_twice,
        reference_name="max-pool, batch norm and activation",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=variant,
        wrap=_with_gradients,
    )


def _kernel(x: torch.Tensor, norm: Norm, activation: Activation) -> tuple[torch.Tensor]:
    return (pool_norm_act(x, norm, activation),)


def _reference(x: torch.Tensor, norm: Norm, activation: Activation) -> tuple[torch.Tensor]:
    return (pool_norm_act_reference(x, norm, activation),)


def _reference_twice(
    x: torch.Tensor, norm: Norm, activation: Activation
) -> tuple[torch.Tensor, torch.Tensor]:
    y = pool_norm_act_reference(x, norm, activation)
    return y, y.view_as(y)


def _with_gradients(function: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., object]:
    def forward_and_backward(
        gradients: list[torch.Tensor], x: torch.Tensor, norm: Norm, activation: Activation
    ) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(x, norm, activation), (x, norm.bias), gradients)

    return forward_and_backward
