"""Time `conv_pool_norm_act`, forward and backward, at the first group of the networks of airbench.

The input needs no gradient. In speednet94 one layer reads the output, in speednet96 two. Beside it stands the
convolution of cuDNN followed by `pool_norm_act`: the output of the convolution and the gradient by it are
written.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.kernels.case import Case
from kernels.arguments import Activation, Norm
from kernels.conv_pool_norm_act.op import conv_pool_norm_act, conv_pool_norm_act_twice
from kernels.pool_norm_act.op import pool_norm_act, pool_norm_act_twice
from kernels.pool_norm_act.reference import pool_norm_act_reference

# Batch, channels of the input and of the output, height and width, activation, layers that read y
_CASES: tuple[tuple[int, int, int, int, Activation, int], ...] = (
    (1536, 32, 64, 31, "silu", 1),
    (1024, 32, 128, 31, "gelu", 2),
)
_NUM_INPUTS = 3
Outputs = tuple[torch.Tensor, ...]


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    torch.backends.cudnn.benchmark = True  # so that conv2d takes its fastest algorithm
    if quick:
        return [_case(device, 8, 8, 16, 5, "gelu", 2)]
    return [_case(device, *case) for case in _CASES]


def _case(
    device: torch.device,
    batch_size: int,
    in_channels: int,
    channels: int,
    size: int,
    activation: Activation,
    uses: int,
) -> Case:
    variant = f"{in_channels}→{channels}, {size}×{size} {activation}"
    layers = _layers(device, in_channels, channels)
    generator = torch.Generator().manual_seed(0)

    def values(channels: int, size: int) -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    inputs = [
        ([values(channels, size // 2) for _ in range(uses)], values(in_channels, size), *layers, activation)
        for _ in range(_NUM_INPUTS)
    ]
    return Case(
        label=f"{variant}, {uses} gradients, batch {batch_size}, fp16",
        kernel=_kernel if uses == 1 else conv_pool_norm_act_twice,
        reference=_reference if uses == 1 else _reference_twice,
        reference_name="conv2d, max-pool, batch norm and activation",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=variant,
        wrap=_with_gradients,
        others=[("conv2d and pool_norm_act", _unfused if uses == 1 else _unfused_twice)],
    )


def _layers(device: torch.device, in_channels: int, channels: int) -> tuple[torch.Tensor, Norm]:
    """Return a weight of the convolution and a norm whose scale is not trained."""
    weight = torch.randn(channels, in_channels, 3, 3, generator=torch.Generator().manual_seed(1))
    weight = (weight / (9 * in_channels) ** 0.5).to(device).contiguous(memory_format=torch.channels_last)
    norm = Norm._make(torch.ones(channels, device=device) for _ in range(4))
    norm.bias.requires_grad_()
    return weight.requires_grad_(), norm


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight.to(x.dtype), padding=1)


def _kernel(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: Activation) -> Outputs:
    return (conv_pool_norm_act(x, weight, norm, activation),)


def _unfused(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: Activation) -> Outputs:
    return (pool_norm_act(_convolve(x, weight), norm, activation),)


def _unfused_twice(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: Activation) -> Outputs:
    return pool_norm_act_twice(_convolve(x, weight), norm, activation)


def _reference(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: Activation) -> Outputs:
    return (pool_norm_act_reference(_convolve(x, weight), norm, activation),)


def _reference_twice(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: Activation) -> Outputs:
    (y,) = _reference(x, weight, norm, activation)
    return y, y.view_as(y)


def _with_gradients(function: Callable[..., Outputs]) -> Callable[..., object]:
    def forward_and_backward(
        gradients: list[torch.Tensor],
        x: torch.Tensor,
        weight: torch.Tensor,
        norm: Norm,
        activation: Activation,
    ) -> Outputs:
        outputs = function(x, weight, norm, activation)
        return torch.autograd.grad(outputs, (weight, norm.bias), gradients)

    return forward_and_backward
