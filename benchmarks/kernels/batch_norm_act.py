"""Time `batch_norm_act`, forward and backward, in a ResNet-18 and in the networks of airbench.

The cases are the ends of the blocks of a ResNet-18, with a residual and ReLU, and the last norms of the
groups of speednet94 (SiLU) and speednet96 (GELU, with a residual).
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.case import Case
from kernels.arguments import Activation, Norm
from kernels.batch_norm_act.op import batch_norm_act
from kernels.batch_norm_act.reference import batch_norm_act_reference

# Batch, channels, height and width, activation, with a residual
_CASES: tuple[tuple[int, int, int, Activation, bool], ...] = (
    *((512, channels, size, "relu", True) for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4))),
    *((1536, channels, size, "silu", False) for channels, size in ((64, 15), (256, 7), (256, 3))),
    *((1024, channels, size, "gelu", True) for channels, size in ((128, 15), (384, 7), (512, 3))),
)
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case of each kind if `quick`."""
    if quick:
        return [_case(device, 8, 16, 4, "relu", True), _case(device, 8, 16, 3, "silu", False)]
    return [_case(device, *arguments) for arguments in _CASES]


def _case(
    device: torch.device, batch_size: int, channels: int, size: int, activation: Activation, residual: bool
) -> Case:
    generator = torch.Generator().manual_seed(0)
    smooth = activation != "relu"  # of airbench, whose norms have no scale

    def values() -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    inputs = []
    for _ in range(_NUM_INPUTS):
        x, gradient = values().requires_grad_(), values()
        added = values().requires_grad_() if residual else None
        weight, bias = (torch.ones(channels, device=device) for _ in range(2))
        leaves = [x, bias, *([] if smooth else [weight]), *([] if added is None else [added])]
        for leaf in leaves:
            leaf.requires_grad_()
        norm = Norm(weight, bias, torch.zeros(channels, device=device), torch.ones(channels, device=device))
        inputs.append((gradient, leaves, x, norm, added, activation))
    name = activation if residual else f"{activation} alone"
    shape = f"{channels}×{size}×{size}"
    return Case(
        label=f"{shape}, {name}, batch {batch_size}, fp16",
        kernel=batch_norm_act,
        reference=batch_norm_act_reference,
        reference_name="batch norm, add and activation" if smooth else "batch norm, add and ReLU",
        inputs=inputs,
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=f"{shape} {name}" if smooth else shape,
        wrap=_with_gradients,
    )


def _with_gradients(function: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    def forward_and_backward(
        gradient: torch.Tensor,
        leaves: list[torch.Tensor],
        x: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        activation: Activation,
    ) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(x, norm, residual, activation), leaves, gradient)

    return forward_and_backward
