"""Run the one launch: `kernels/norm_tiles.py` describes the tiles, which are those of y."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.activations import activate
from kernels.arguments import Norm
from kernels.norm_tiles import load_channels, plan
from kernels.pool_norm_act.forward import pool_tile
from kernels.tiles import load, locate, store


@triton.jit
def _load_coefficients(norm, channel, num_channels, eps):
    """Return mean, scale and bias of each channel, 0 where a channel does not exist."""
    mean = load_channels(norm.running_mean, channel, num_channels)
    var = load_channels(norm.running_var, channel, num_channels)
    scale = load_channels(norm.weight, channel, num_channels) * tl.rsqrt(var + eps)
    return mean, scale, load_channels(norm.bias, channel, num_channels)


@triton.jit
def _normalise(values, coefficients):
    mean, scale, bias = coefficients
    return tl.fma(values - mean[None, :], scale[None, :], bias[None, :])


@triton.jit
def _norm_inference_kernel(  # noqa: PLR0913
    x_ptr,  # (M, C), or (N, HEIGHT, WIDTH, C) if it is pooled
    norm,  # Norm
    residual_ptr,  # (M, C) or None
    residual_norm,  # Norm if the residual is normalised, None if it is added as it is
    y_ptr,  # (M, C)
    num_rows,
    num_channels,
    eps,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    POOL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    coefficients = _load_coefficients(norm, channel, num_channels, eps)
    if residual_norm is not None:
        residual_coefficients = _load_coefficients(residual_norm, channel, num_channels, eps)
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        elements = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        if POOL:
            sizes = num_rows, num_channels
            values, _, _ = pool_tile(x_ptr, tile, channel, sizes, HEIGHT, WIDTH, BLOCK_ROWS, WHOLE_TILES)
        else:
            values = load(x_ptr, elements, WHOLE_TILES, True)
        z = _normalise(values, coefficients)
        if residual_ptr is not None:
            residual = load(residual_ptr, elements, WHOLE_TILES, True)
            if residual_norm is not None:
                residual = _normalise(residual, residual_coefficients)
            z += residual
        store(y_ptr, elements, activate(z, ACTIVATION), WHOLE_TILES)


def forward_output(x: torch.Tensor, pool: bool) -> torch.Tensor:
    """Return a tensor for y, channels_last."""
    num_images, num_channels, height, width = x.shape
    size = (height // 2, width // 2) if pool else (height, width)
    shape = (num_images, num_channels, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def launch(
    x: torch.Tensor,
    norm: Sequence[torch.Tensor],
    residual: torch.Tensor | None,
    residual_norm: Sequence[torch.Tensor],
    activation: str,
    eps: float,
    pool: bool,
) -> torch.Tensor:
    """Return y. Activations must be channels_last; an empty `residual_norm` leaves the residual as it is."""
    y = forward_output(x, pool)
    num_channels = x.shape[1]
    grid, options = plan("pool inference" if pool else "inference", y)
    tensors = x, Norm(*norm), residual, Norm(*residual_norm) if residual_norm else None, y
    sizes = y.numel() // num_channels, num_channels, eps, *(x.shape[2:] if pool else (0, 0))
    _norm_inference_kernel[grid](*tensors, *sizes, pool, activation, **options)
    return y
