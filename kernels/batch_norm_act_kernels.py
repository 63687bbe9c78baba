"""The Triton kernels of `batch_norm_act.py` and their launches.

Shapes: in memory an activation is M = N·H·W rows of C values (channels_last). A program takes tiles of some rows by some channels,
every P-th of its column of tiles, where P is how many programs share a column.

| launch        | reads                                 | writes                                      |
|---------------|---------------------------------------|---------------------------------------------|
| statistics    | x                                     | two sums of each program                    |
| apply         | x, residual                           | y, and with a residual one bit of ReLU mask |
| gradient sums | dy, second dy, x, mask                | two sums of each program; dz if needed      |
| gradient      | dz (dy where no dz was written), x    | dx                                          |

The second launch of each pair adds up what the first left, again in each program: that is cheaper than a launch between the two.
Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The first launch of a pair walks from the end of x to its
start and the second from the start: each begins with what its predecessor left in the L2 cache.

Variance: x is shifted by the mean of its last tile. A shift by the mean of k of the M values of a channel multiplies the rounding error
of the textbook formula by at most 1 + M / k, and by about 1 where the k are like the rest, whatever the mean of the values (Chan, Golub
and LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations").
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Tiling(NamedTuple):
    """How a kernel cuts M rows of C channels into tiles and programs."""

    channels: int  # of a tile; a power of two
    loads: int  # of 8 values, which are 16 bytes in half precision: of each thread, tensor and tile
    warps: int
    programs: int  # for each multiprocessor of the GPU
    stages: int  # of the pipeline through shared memory; 1 is none: the loads of a tile are in flight together


# By kernel and C; other C take the entry of the next larger C, and tiles no wider than C.
TILINGS = {
    ("statistics", 64): Tiling(64, 4, 8, 2, 3),
    ("statistics", 128): Tiling(64, 4, 8, 2, 3),
    ("statistics", 256): Tiling(64, 4, 8, 2, 3),
    ("statistics", 512): Tiling(64, 4, 8, 1, 3),
    ("apply", 64): Tiling(64, 4, 16, 1, 1),
    ("apply", 128): Tiling(128, 4, 16, 1, 1),
    ("apply", 256): Tiling(64, 4, 8, 2, 1),
    ("apply", 512): Tiling(64, 4, 16, 1, 1),
    ("gradient sums", 64): Tiling(64, 2, 8, 2, 3),
    ("gradient sums", 128): Tiling(64, 2, 8, 2, 1),
    ("gradient sums", 256): Tiling(64, 4, 8, 2, 1),
    ("gradient sums", 512): Tiling(64, 2, 8, 2, 1),
    ("gradient", 64): Tiling(64, 4, 16, 1, 1),
    ("gradient", 128): Tiling(64, 4, 16, 1, 1),
    ("gradient", 256): Tiling(64, 4, 8, 2, 1),
    ("gradient", 512): Tiling(64, 4, 8, 2, 1),
}


@triton.jit
def _tile(tile, channel, num_rows, num_channels, BLOCK_ROWS: tl.constexpr):
    """Return the offsets of a tile's elements, in two parts (one 64-bit number; 32-bit numbers), and which elements exist."""
    row = tl.arange(0, BLOCK_ROWS)
    start = tl.cast(tile, tl.int64) * BLOCK_ROWS
    exists = (row < num_rows - start)[:, None] & (channel < num_channels)[None, :]
    return start * num_channels, row[:, None] * num_channels + channel[None, :], exists


@triton.jit
def _load(pointer, start, offset, exists, WHOLE_TILES: tl.constexpr, LAST_USE: tl.constexpr, DTYPE: tl.constexpr = tl.float32):
    eviction: tl.constexpr = "evict_first" if LAST_USE else ""
    if WHOLE_TILES:
        values = tl.load(pointer + start + offset, eviction_policy=eviction)
    else:
        values = tl.load(pointer + start + offset, mask=exists, other=0, eviction_policy=eviction)
    return values.to(DTYPE)


@triton.jit
def _store(pointer, start, offset, values, exists, WHOLE_TILES: tl.constexpr):
    values = values.to(pointer.dtype.element_ty)
    if WHOLE_TILES:
        tl.store(pointer + start + offset, values)
    else:
        tl.store(pointer + start + offset, values, mask=exists)


@triton.jit
def _fold(values, FOLD: tl.constexpr):
    """Return (rows / FOLD, channels): the sum over those rows of a tile that one thread holds, so that the sums take few registers."""
    return tl.sum(tl.reshape(values, (FOLD, values.shape[0] // FOLD, values.shape[1])), axis=0)


@triton.jit
def _mask_tile(tile, num_rows, num_channels, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """As `_tile`, of the mask's bytes, of which number g holds the channels from 8g."""
    byte = tl.program_id(1) * (BLOCK_CHANNELS // 8) + tl.arange(0, BLOCK_CHANNELS // 8)
    return _tile(tile, byte, num_rows, tl.cdiv(num_channels, 8), BLOCK_ROWS)


@triton.jit
def _add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Return two sums over the programs, of the first and of the second half of (2, P, C) partial sums."""
    in_channels = channel < num_channels
    sums = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    second_sums = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = first + tl.arange(0, BLOCK_PARTIALS)
        exists = (partial < num_partials)[:, None] & in_channels[None, :]
        pointers = partials_ptr + partial[:, None] * num_channels + channel[None, :]
        sums += tl.load(pointers, mask=exists, other=0.0)
        second_sums += tl.load(pointers + num_partials * num_channels, mask=exists, other=0.0)
    return tl.sum(sums, axis=0), tl.sum(second_sums, axis=0)


@triton.jit
def _statistics_kernel(
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
    in_channels = channel < num_channels
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)

    last = num_tiles - 1
    shift_start, shift_offset, shift_exists = _tile(last, channel, num_rows, num_channels, BLOCK_ROWS)
    values = _load(x_ptr, shift_start, shift_offset, shift_exists, WHOLE_TILES, False)
    shift = tl.sum(values, axis=0) / (num_rows - last * BLOCK_ROWS)

    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        start, offset, exists = _tile(last - step, channel, num_rows, num_channels, BLOCK_ROWS)
        deviation = _load(x_ptr, start, offset, exists, WHOLE_TILES, False) - shift[None, :]
        if not WHOLE_TILES:
            deviation = tl.where(exists, deviation, 0.0)
        sums += _fold(deviation, FOLD)
        squares += _fold(deviation * deviation, FOLD)

    partials = partials_ptr + program * num_channels + channel
    tl.store(partials, tl.sum(sums, axis=0), mask=in_channels)
    tl.store(partials + num_programs * num_channels, tl.sum(squares, axis=0), mask=in_channels)
    if program == 0:
        tl.store(shift_ptr + channel, shift, mask=in_channels)


@triton.jit(do_not_specialize=["num_partials"])
def _apply_kernel(
    x_ptr,  # (M, C)
    residual_ptr,  # (M, C) or None
    shift_ptr,  # (C,) float32, as are weight, bias, running_mean and running_var
    partials_ptr,  # (2, P, C) float32: of the statistics kernel
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    y_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    num_rows,
    num_channels,
    num_partials,
    momentum,
    eps,
    RELU: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < num_channels
    total, squares = _add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS)
    correction = total / num_rows
    mean = tl.load(shift_ptr + channel, mask=in_channels, other=0.0) + correction
    var = squares / num_rows - correction * correction
    var = tl.where(var < 0.0, 0.0, var)  # not a maximum, which would turn NaN into 0
    inverse_std = tl.rsqrt(var + eps)
    if tl.program_id(0) == 0:
        tl.store(statistics_ptr + channel, mean, mask=in_channels)
        tl.store(statistics_ptr + num_channels + channel, inverse_std, mask=in_channels)
        running_mean = tl.load(running_mean_ptr + channel, mask=in_channels)
        running_var = tl.load(running_var_ptr + channel, mask=in_channels)
        unbiased = var * (num_rows / (num_rows - 1.0))
        tl.store(running_mean_ptr + channel, running_mean + momentum * (mean - running_mean), mask=in_channels)
        tl.store(running_var_ptr + channel, running_var + momentum * (unbiased - running_var), mask=in_channels)

    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES):
        start, offset, exists = _tile(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        z = tl.fma(_load(x_ptr, start, offset, exists, WHOLE_TILES, True) - mean[None, :], scale[None, :], bias[None, :])
        if residual_ptr is not None:
            z += _load(residual_ptr, start, offset, exists, WHOLE_TILES, True)
        if RELU:
            passes = ~(z <= 0.0)  # true for NaN
            z = tl.where(passes, z, 0.0)
            if mask_ptr is not None:
                bits = tl.reshape(passes.to(tl.int32), (BLOCK_ROWS, BLOCK_CHANNELS // 8, 8)) << tl.arange(0, 8)[None, None, :]
                mask_start, mask_offset, bits_exist = _mask_tile(tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
                _store(mask_ptr, mask_start, mask_offset, tl.sum(bits, axis=2), bits_exist, WHOLE_TILES)
        _store(y_ptr, start, offset, z, exists, WHOLE_TILES)


@triton.jit
def _gradient_sums_kernel(
    dy_ptr,  # (M, C)
    second_dy_ptr,  # (M, C) or None
    x_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
    weight_ptr,  # (C,) float32, as is bias
    bias_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    dz_ptr,  # (M, C) or None
    partials_ptr,  # (2, P, C) float32: sum of dz, sum of dz * (x - mean)
    num_rows,
    num_channels,
    RECOMPUTE_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < num_channels
    mean = tl.load(statistics_ptr + channel, mask=in_channels, other=0.0)
    inverse_std = tl.load(statistics_ptr + num_channels + channel, mask=in_channels, other=0.0)
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)

    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    products = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    num_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        start, offset, exists = _tile(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = _load(dy_ptr, start, offset, exists, WHOLE_TILES, dz_ptr is not None)
        if second_dy_ptr is not None:
            dz += _load(second_dy_ptr, start, offset, exists, WHOLE_TILES, True)
        deviation = _load(x_ptr, start, offset, exists, WHOLE_TILES, False) - mean[None, :]
        if RECOMPUTE_MASK:
            dz = tl.where(tl.fma(deviation, scale[None, :], bias[None, :]) <= 0.0, 0.0, dz)
        if mask_ptr is not None:
            mask_start, mask_offset, bits_exist = _mask_tile(tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
            bits = _load(mask_ptr, mask_start, mask_offset, bits_exist, WHOLE_TILES, True, tl.int32)
            bits = bits[:, :, None] >> tl.arange(0, 8)[None, None, :]
            dz = tl.where((tl.reshape(bits, (BLOCK_ROWS, BLOCK_CHANNELS)) & 1) != 0, dz, 0.0)
        if dz_ptr is not None:
            dz = dz.to(dz_ptr.dtype.element_ty).to(tl.float32)  # the sums are those of what the gradient kernel reads
            _store(dz_ptr, start, offset, dz, exists, WHOLE_TILES)
        sums += _fold(dz, FOLD)
        products += _fold(dz * deviation, FOLD)

    partials = partials_ptr + program * num_channels + channel
    tl.store(partials, tl.sum(sums, axis=0), mask=in_channels)
    tl.store(partials + num_programs * num_channels, tl.sum(products, axis=0), mask=in_channels)


@triton.jit(do_not_specialize=["num_partials"])
def _gradient_kernel(
    dz_ptr,  # (M, C); dy where RECOMPUTE_MASK
    x_ptr,  # (M, C)
    weight_ptr,  # (C,) float32, as are bias, dweight and dbias
    bias_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    partials_ptr,  # (2, P, C) float32, of the gradient sums kernel
    dx_ptr,  # (M, C)
    dweight_ptr,
    dbias_ptr,
    num_rows,
    num_channels,
    num_partials,
    RECOMPUTE_MASK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channel < num_channels
    dbias, products = _add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS)
    mean = tl.load(statistics_ptr + channel, mask=in_channels, other=0.0)
    inverse_std = tl.load(statistics_ptr + num_channels + channel, mask=in_channels, other=0.0)
    dweight = products * inverse_std
    if tl.program_id(0) == 0:
        tl.store(dweight_ptr + channel, dweight, mask=in_channels)
        tl.store(dbias_ptr + channel, dbias, mask=in_channels)

    # dz less its mean and less its projection on the normalised x (Ioffe and Szegedy 2015, section 3), in terms of x - mean.
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)
    slope = -scale * inverse_std * dweight / num_rows
    constant = -scale * dbias / num_rows
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES):
        start, offset, exists = _tile(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        dz = _load(dz_ptr, start, offset, exists, WHOLE_TILES, True)
        deviation = _load(x_ptr, start, offset, exists, WHOLE_TILES, True) - mean[None, :]
        if RECOMPUTE_MASK:
            dz = tl.where(tl.fma(deviation, scale[None, :], bias[None, :]) <= 0.0, 0.0, dz)
        dx = tl.fma(scale[None, :], dz, tl.fma(slope[None, :], deviation, constant[None, :]))
        _store(dx_ptr, start, offset, dx, exists, WHOLE_TILES)


class _Launch(NamedTuple):
    grid: tuple[int, int]
    options: dict[str, Any]


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4  # in the interpreter


def _plan(kernel: str, x: torch.Tensor) -> _Launch:
    """Return grid and options of a launch of a kernel on x."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    tiling = TILINGS[kernel, min(max(triton.next_power_of_2(num_channels), 64), 512)]
    block_channels = max(8, min(tiling.channels, triton.next_power_of_2(num_channels)))
    block_rows = tiling.warps * tiling.loads * 256 // block_channels
    columns = triton.cdiv(num_channels, block_channels)
    programs = max(1, tiling.programs * _num_multiprocessors(x.device) // columns)
    options = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_CHANNELS": block_channels,
        "WHOLE_TILES": num_rows % block_rows == 0 and num_channels % block_channels == 0,
        "NUM_STAGES": tiling.stages,
        "num_warps": tiling.warps,
        "enable_fp_fusion": True,  # Triton 3.9 warns where its default is not asked for by name
    }
    if kernel in ("statistics", "gradient sums"):
        options["FOLD"] = tiling.loads
    else:
        options["BLOCK_PARTIALS"] = tiling.warps * 512 // block_channels  # 4 loads of 16 bytes of each thread and of each of two sums
    return _Launch((min(programs, triton.cdiv(num_rows, block_rows)), columns), options)


def forward_outputs(x: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_images, num_channels, height, width = x.shape
    mask_shape = (num_images * height * width, (num_channels + 7) // 8) if relu and residual is not None else (0,)
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        x.new_empty((2, num_channels), dtype=torch.float32),
        x.new_empty(mask_shape, dtype=torch.uint8),
    )


def backward_outputs(x: torch.Tensor, weight: torch.Tensor, returns_dz: bool) -> tuple[torch.Tensor, ...]:
    like_x = torch.empty_like(x, memory_format=torch.channels_last)
    return like_x, torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(like_x) if returns_dz else x.new_empty(0)


def launch_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    relu: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the forward kernels; for the results see `forward_reference`. x and residual must be channels_last."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    y, statistics, mask = forward_outputs(x, residual, relu)

    plan = _plan("statistics", x)
    partials = torch.empty((2, plan.grid[0], num_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty_like(weight)
    _statistics_kernel[plan.grid](x, shift, partials, num_rows, num_channels, **plan.options)

    plan = _plan("apply", x)
    _apply_kernel[plan.grid](
        x,
        residual,
        shift,
        partials,
        weight,
        bias,
        running_mean,
        running_var,
        y,
        mask if mask.numel() else None,
        statistics,
        num_rows,
        num_channels,
        partials.shape[1],
        momentum,
        eps,
        relu,
        **plan.options,
    )
    return y, statistics, mask


def launch_backward(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    relu: bool,
    returns_dz: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels; for the results see `backward_reference`. Activations and their gradients must be channels_last."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    dx, dweight, dbias, dz = backward_outputs(x, weight, returns_dz)
    recompute_mask = relu and mask is None

    plan = _plan("gradient sums", x)
    partials = torch.empty((2, plan.grid[0], num_channels), dtype=torch.float32, device=x.device)
    written = dz if returns_dz else None
    _gradient_sums_kernel[plan.grid](
        gradient,
        second_gradient,
        x,
        mask,
        weight,
        bias,
        statistics,
        written,
        partials,
        num_rows,
        num_channels,
        recompute_mask,
        **plan.options,
    )

    plan = _plan("gradient", x)
    _gradient_kernel[plan.grid](
        gradient if written is None else written,
        x,
        weight,
        bias,
        statistics,
        partials,
        dx,
        dweight,
        dbias,
        num_rows,
        num_channels,
        partials.shape[1],
        recompute_mask and written is None,
        **plan.options,
    )
    return dx, dweight, dbias, dz
