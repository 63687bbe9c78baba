"""Time `norm_act_inference` at layers of ResNet-18 and of the networks of airbench."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels.case import Case
from kernels.arguments import Activation, Norm
from kernels.norm_act_inference.op import norm_act_inference
from kernels.norm_act_inference.reference import norm_act_inference_reference

# Batch, channels, height and width of x, activation, with a residual, with a pool
_CASES: tuple[tuple[int, int, int, Activation, bool, bool], ...] = (
    (2000, 64, 31, "silu", False, True),
    (2000, 64, 15, "silu", False, False),
    (2000, 256, 15, "silu", False, True),
    (1024, 64, 32, "relu", True, False),
    (1024, 512, 4, "relu", True, False),
)
_NUM_INPUTS = 3


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    if quick:
        return [_case(device, 8, 16, 5, "gelu", True, False)]
    return [_case(device, *case) for case in _CASES]


def _case(
    device: torch.device,
    batch_size: int,
    channels: int,
    size: int,
    activation: Activation,
    with_residual: bool,
    pool: bool,
) -> Case:
    generator = torch.Generator().manual_seed(0)

    def values() -> torch.Tensor:
        values = torch.randn(batch_size, channels, size, size, generator=generator)
        return values.to(device, torch.float16).contiguous(memory_format=torch.channels_last)

    norm = Norm._make(torch.ones(channels, device=device) for _ in range(4))
    kind = ", pool" if pool else ", residual" if with_residual else ""
    variant = f"{channels}×{size}×{size} {activation}{kind}"
    return Case(
        label=f"{variant}, batch {batch_size}, fp16",
        kernel=norm_act_inference,
        reference=norm_act_inference_reference,
        reference_name="batch norm in evaluation and activation",
        inputs=[
            (activation, pool, values(), norm, *([values()] if with_residual else []))
            for _ in range(_NUM_INPUTS)
        ],
        batch_size=batch_size,
        precision="fp16",
        image_size=size,
        variant=variant,
        wrap=_with_options,
    )


def _with_options(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def call(activation: Activation, pool: bool, *tensors: Any) -> torch.Tensor:
        return function(*tensors, activation=activation, pool=pool)

    return call
