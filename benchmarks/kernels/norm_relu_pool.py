"""Time `norm_relu_pool`, forward and backward, after the first convolution of ResNets for ImageNet.

Two layers read the output: a convolution of the first block, and its shortcut.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from benchmarks.kernels.case import Case
from kernels.arguments import Norm
from kernels.batch_norm_act.op import batch_norm_act
from kernels.norm_relu_pool.op import norm_relu_pool_twice
from kernels.norm_relu_pool.reference import norm_relu_pool_reference

_CASES = ((256, 112), (256, 80))  # batch, height and width of the convolution's output at 224 and 160 pixels
_CHANNELS, _NUM_INPUTS = 64, 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    return [_case(device, 8, 6)] if quick else [_case(device, *case) for case in _CASES]


def _case(device: torch.device, batch_size: int, size: int) -> Case:
    generator = torch.Generator(device).manual_seed(0)

    def values(size: int) -> torch.Tensor:
        shape = batch_size, _CHANNELS, size, size
        values = torch.randn(shape, generator=generator, device=device, dtype=torch.float16)
        return values.contiguous(memory_format=torch.channels_last)

    norm = Norm._make(torch.ones(_CHANNELS, device=device) for _ in range(4))
    for parameter in norm[:2]:
        parameter.requires_grad_()
    inputs = [
        ([values((size + 1) // 2) for _ in range(2)], values(size).requires_grad_(), norm)
        for _ in range(_NUM_INPUTS)
    ]
    variant = f"{_CHANNELS}×{size}×{size}"
    return Case(
        label=f"{variant}, batch {batch_size}, fp16",
        kernel=norm_relu_pool_twice,
        reference=_reference,
        reference_name="batch norm, ReLU and max-pool",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=variant,
        wrap=_with_gradients,
        others=[("batch_norm_act, then max-pool", _one_by_one)],
    )


def _reference(x: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    y = norm_relu_pool_reference(x, norm)
    return y, y.view_as(y)


def _one_by_one(x: torch.Tensor, norm: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    y = functional.max_pool2d(batch_norm_act(x, norm), 3, 2, 1)
    return y, y.view_as(y)


def _with_gradients(
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]],
) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradients: list[torch.Tensor], x: torch.Tensor, norm: Norm
    ) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(x, norm), (x, *norm[:2]), gradients)

    return forward_and_backward
