"""Run the forward pass: `kernels/norm_tiles.py` lists the launches and describes the tiles.

Variance: x is shifted by the mean of its last tile. A shift by the mean of k of the M values of a channel
multiplies the rounding error of the textbook formula by at most 1 + M / k, and by about 1 if the k values are
like the rest. This holds for any mean of the values (Chan, Golub and LeVeque 1983, "Algorithms for computing
the sample variance: analysis and recommendations").
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.activations import activate
from kernels.arguments import Norm
from kernels.norm_tiles import add_deviations, add_partials, load_channels, locate_mask, plan, store_partials
from kernels.tiles import load, locate, store

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # y, statistics and the mask of the ReLU


class NormTensors(NamedTuple):
    """The tensors of a norm in the apply kernel, which reads the first six and writes the last three."""

    shift: torch.Tensor  # (C,) float32, as are weight, bias, running_mean and running_var
    partials: torch.Tensor  # (2, P, C) float32, of the statistics kernel
    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor
    statistics: torch.Tensor  # (2, C) float32: mean, 1 / standard deviation


@triton.jit
def _norm_statistics_kernel(  # noqa: PLR0913
    x_ptr,  # (M, C)
    shift_ptr,  # (C,) float32
    partials_ptr,  # (2, P, C) float32: sum of x - shift, sum of squares of x - shift
    num_rows,
    num_channels,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)

    last = num_tiles - 1
    values = load(x_ptr, locate(last, channel, num_rows, num_channels, BLOCK_ROWS), WHOLE_TILES, False)
    shift = tl.sum(values, axis=0) / (num_rows - last * BLOCK_ROWS)

    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        elements = locate(last - step, channel, num_rows, num_channels, BLOCK_ROWS)
        values = load(x_ptr, elements, WHOLE_TILES, False)
        sums, squares = add_deviations(sums, squares, values, shift, elements[2], FOLD, WHOLE_TILES)

    store_partials(partials_ptr, sums, squares, channel, num_channels)
    if program == 0:
        tl.store(shift_ptr + channel, shift, mask=channel < num_channels)


@triton.jit
def finish_statistics(channel, norm, sizes, momentum, eps, BLOCK_PARTIALS: tl.constexpr):
    """Return mean, scale and bias of each channel.

    The first program of a column also writes the statistics and the running statistics.
    """
    num_rows, num_channels, num_partials = sizes
    in_channels = channel < num_channels
    total, squares = add_partials(norm.partials, num_partials, num_channels, channel, BLOCK_PARTIALS)
    correction = total / num_rows
    mean = load_channels(norm.shift, channel, num_channels) + correction
    var = squares / num_rows - correction * correction
    var = tl.where(var < 0.0, 0.0, var)  # not a maximum, which would turn NaN into 0
    inverse_std = tl.rsqrt(var + eps)
    if tl.program_id(0) == 0:
        tl.store(norm.statistics + channel, mean, mask=in_channels)
        tl.store(norm.statistics + num_channels + channel, inverse_std, mask=in_channels)
        running_mean = tl.load(norm.running_mean + channel, mask=in_channels)
        running_var = tl.load(norm.running_var + channel, mask=in_channels)
        unbiased = var * (num_rows / (num_rows - 1.0))
        running_mean += momentum * (mean - running_mean)
        tl.store(norm.running_mean + channel, running_mean, mask=in_channels)
        running_var += momentum * (unbiased - running_var)
        tl.store(norm.running_var + channel, running_var, mask=in_channels)
    scale = load_channels(norm.weight, channel, num_channels) * inverse_std
    return mean, scale, load_channels(norm.bias, channel, num_channels)


@triton.jit
def _load_normalised(pointer, elements, coefficients, WHOLE_TILES: tl.constexpr):
    """Return (value - mean) * scale + bias for the elements of a tile."""
    mean, scale, bias = coefficients
    return tl.fma(load(pointer, elements, WHOLE_TILES, True) - mean[None, :], scale[None, :], bias[None, :])


@triton.jit
def _store_mask(mask_ptr, passes, tile, num_rows, num_channels, WHOLE_TILES: tl.constexpr):
    """Write one bit for each element of a tile: 1 where the ReLU lets it pass."""
    BLOCK_ROWS: tl.constexpr = passes.shape[0]
    BLOCK_CHANNELS: tl.constexpr = passes.shape[1]
    bits = tl.reshape(passes.to(tl.int32), (BLOCK_ROWS, BLOCK_CHANNELS // 8, 8))
    bits = bits << tl.arange(0, 8)[None, None, :]
    elements = locate_mask(tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
    store(mask_ptr, elements, tl.sum(bits, axis=2), WHOLE_TILES)


@triton.jit(do_not_specialize=["num_partials"])
def _norm_apply_kernel(  # noqa: PLR0913
    x_ptr,  # (M, C)
    norm,  # NormTensors
    residual_ptr,  # (M, C) or None
    residual_norm,  # NormTensors if the residual is normalised, None if it is added as it is
    y_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
    num_rows,
    num_channels,
    num_partials,
    momentum,
    eps,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    sizes = num_rows, num_channels, num_partials
    coefficients = finish_statistics(channel, norm, sizes, momentum, eps, BLOCK_PARTIALS)
    if residual_norm is not None:
        residual_coefficients = finish_statistics(
            channel, residual_norm, sizes, momentum, eps, BLOCK_PARTIALS
        )
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        elements = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        z = _load_normalised(x_ptr, elements, coefficients, WHOLE_TILES)
        if residual_norm is not None:
            z += _load_normalised(residual_ptr, elements, residual_coefficients, WHOLE_TILES)
        elif residual_ptr is not None:
            z += load(residual_ptr, elements, WHOLE_TILES, True)
        if mask_ptr is not None:
            passes = ~(z <= 0.0)  # true for NaN
            _store_mask(mask_ptr, passes, tile, num_rows, num_channels, WHOLE_TILES)
        store(y_ptr, elements, activate(z, ACTIVATION), WHOLE_TILES)


def empty_outputs(x: torch.Tensor, num_statistics: int, has_mask: bool) -> Outputs:
    """Return tensors for y, (num_statistics, C) statistics, and the mask of the ReLU (empty without one)."""
    num_images, num_channels, height, width = x.shape
    mask_shape = (num_images * height * width, (num_channels + 7) // 8) if has_mask else (0,)
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        x.new_empty((num_statistics, num_channels), dtype=torch.float32),
        x.new_empty(mask_shape, dtype=torch.uint8),
    )


def forward_outputs(x: torch.Tensor, residual: torch.Tensor | None, activation: str) -> Outputs:
    """Return tensors for the results of `launch_forward`."""
    return empty_outputs(x, 2, has_mask=activation == "relu" and residual is not None)


def launch_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    norm: Norm,
    activation: str,
    momentum: float,
    eps: float,
) -> Outputs:
    """Run the forward kernels and return what `forward_reference` returns. Inputs must be channels_last."""
    outputs = forward_outputs(x, residual, activation)
    tensors = launch_statistics(x, norm, outputs[1])
    launch_apply(x, tensors, residual, None, outputs, activation, momentum, eps)
    return outputs


def launch_statistics(x: torch.Tensor, norm: Norm, statistics: torch.Tensor) -> NormTensors:
    """Sum up x, and return the arguments with which the apply kernel writes the statistics."""
    num_channels = x.shape[1]
    launch = plan("statistics", x)
    partials = torch.empty((2, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty(num_channels, dtype=torch.float32, device=x.device)
    num_rows = x.numel() // num_channels
    _norm_statistics_kernel[launch.grid](x, shift, partials, num_rows, num_channels, **launch.options)
    return NormTensors(shift, partials, *norm, statistics)


def launch_apply(  # noqa: PLR0913
    x: torch.Tensor,
    norm: NormTensors,
    residual: torch.Tensor | None,
    residual_norm: NormTensors | None,
    outputs: Outputs,
    activation: str,
    momentum: float,
    eps: float,
) -> None:
    """Write y, the statistics and the mask."""
    y, _, mask = outputs
    num_channels = x.shape[1]
    launch = plan("apply", x)
    tensors = x, norm, residual, residual_norm, y, mask if mask.numel() else None
    sizes = x.numel() // num_channels, num_channels, norm.partials.shape[1]
    _norm_apply_kernel[launch.grid](*tensors, *sizes, momentum, eps, activation, **launch.options)
