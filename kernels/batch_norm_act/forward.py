"""The forward kernels of `batch_norm_act.py` and their launches; `batch_norm_act_tiles.py` describes what they have in common.

Variance: x is shifted by the mean of its last tile. A shift by the mean of k of the M values of a channel multiplies the rounding error
of the textbook formula by at most 1 + M / k, and by about 1 where the k are like the rest, whatever the mean of the values (Chan, Golub
and LeVeque 1983, "Algorithms for computing the sample variance: analysis and recommendations").
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.batch_norm_act.tiles import add_partials, fold, load, locate, locate_mask, plan, store


@triton.jit
def _norm_statistics_kernel(
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
    shift_start, shift_offset, shift_exists = locate(last, channel, num_rows, num_channels, BLOCK_ROWS)
    values = load(x_ptr, shift_start, shift_offset, shift_exists, WHOLE_TILES, False)
    shift = tl.sum(values, axis=0) / (num_rows - last * BLOCK_ROWS)

    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        start, offset, exists = locate(last - step, channel, num_rows, num_channels, BLOCK_ROWS)
        deviation = load(x_ptr, start, offset, exists, WHOLE_TILES, False) - shift[None, :]
        if not WHOLE_TILES:
            deviation = tl.where(exists, deviation, 0.0)
        sums += fold(deviation, FOLD)
        squares += fold(deviation * deviation, FOLD)

    partials = partials_ptr + program * num_channels + channel
    tl.store(partials, tl.sum(sums, axis=0), mask=in_channels)
    tl.store(partials + num_programs * num_channels, tl.sum(squares, axis=0), mask=in_channels)
    if program == 0:
        tl.store(shift_ptr + channel, shift, mask=in_channels)


@triton.jit
def _finish(
    channel,
    shift_ptr,  # (C,) float32, as are weight, bias, running_mean and running_var
    partials_ptr,  # (2, P, C) float32: of the statistics kernel
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    statistics_ptr,  # (2, C) float32: mean, 1 / standard deviation
    num_rows,
    num_channels,
    num_partials,
    momentum,
    eps,
    BLOCK_PARTIALS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Return mean, scale and bias of each channel. The first program of a column also writes the statistics, the running ones included."""
    in_channels = channel < num_channels
    total, squares = add_partials(
        partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS, BLOCK_CHANNELS
    )
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
        tl.store(
            running_mean_ptr + channel, running_mean + momentum * (mean - running_mean), mask=in_channels
        )
        tl.store(
            running_var_ptr + channel, running_var + momentum * (unbiased - running_var), mask=in_channels
        )
    scale = tl.load(weight_ptr + channel, mask=in_channels, other=0.0) * inverse_std
    return mean, scale, tl.load(bias_ptr + channel, mask=in_channels, other=0.0)


@triton.jit(do_not_specialize=["num_partials"])
def _norm_apply_kernel(
    x_ptr,  # (M, C)
    shift_ptr,  # these seven: see `_finish`
    partials_ptr,
    weight_ptr,
    bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    statistics_ptr,
    residual_ptr,  # (M, C) or None
    residual_shift_ptr,  # these seven: as those of x where the residual is normalised, None where it is added as it is
    residual_partials_ptr,
    residual_weight_ptr,
    residual_bias_ptr,
    residual_running_mean_ptr,
    residual_running_var_ptr,
    residual_statistics_ptr,
    y_ptr,  # (M, C)
    mask_ptr,  # (M, ceil(C / 8)) uint8 or None
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
    mean, scale, bias = _finish(
        channel,
        shift_ptr,
        partials_ptr,
        weight_ptr,
        bias_ptr,
        running_mean_ptr,
        running_var_ptr,
        statistics_ptr,
        num_rows,
        num_channels,
        num_partials,
        momentum,
        eps,
        BLOCK_PARTIALS,
        BLOCK_CHANNELS,
    )
    if residual_weight_ptr is not None:
        residual_mean, residual_scale, residual_bias = _finish(
            channel,
            residual_shift_ptr,
            residual_partials_ptr,
            residual_weight_ptr,
            residual_bias_ptr,
            residual_running_mean_ptr,
            residual_running_var_ptr,
            residual_statistics_ptr,
            num_rows,
            num_channels,
            num_partials,
            momentum,
            eps,
            BLOCK_PARTIALS,
            BLOCK_CHANNELS,
        )
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(num_rows, BLOCK_ROWS), tl.num_programs(0), num_stages=NUM_STAGES
    ):
        start, offset, exists = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
        z = tl.fma(
            load(x_ptr, start, offset, exists, WHOLE_TILES, True) - mean[None, :],
            scale[None, :],
            bias[None, :],
        )
        if residual_ptr is not None:
            residual = load(residual_ptr, start, offset, exists, WHOLE_TILES, True)
            if residual_weight_ptr is not None:
                residual = tl.fma(
                    residual - residual_mean[None, :], residual_scale[None, :], residual_bias[None, :]
                )
            z += residual
        if RELU:
            passes = ~(z <= 0.0)  # true for NaN
            z = tl.where(passes, z, 0.0)
            if mask_ptr is not None:
                bits = (
                    tl.reshape(passes.to(tl.int32), (BLOCK_ROWS, BLOCK_CHANNELS // 8, 8))
                    << tl.arange(0, 8)[None, None, :]
                )
                mask_start, mask_offset, bits_exist = locate_mask(
                    tile, num_rows, num_channels, BLOCK_ROWS, BLOCK_CHANNELS
                )
                store(mask_ptr, mask_start, mask_offset, tl.sum(bits, axis=2), bits_exist, WHOLE_TILES)
        store(y_ptr, start, offset, z, exists, WHOLE_TILES)


def forward_outputs(
    x: torch.Tensor, residual: torch.Tensor | None, relu: bool, normalises_residual: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_images, num_channels, height, width = x.shape
    mask_shape = (
        (num_images * height * width, (num_channels + 7) // 8) if relu and residual is not None else (0,)
    )
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        x.new_empty((4 if normalises_residual else 2, num_channels), dtype=torch.float32),
        x.new_empty(mask_shape, dtype=torch.uint8),
    )


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
    residual_norm: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the forward kernels; for the results see `forward_reference`. x and residual must be channels_last.

    Where the residual is normalised too, by `residual_norm` (weight, bias, running mean and variance), the statistics are (4, C): those
    of x, then those of the residual.
    """
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    y, statistics, mask = forward_outputs(x, residual, relu, residual_norm is not None)
    shift, partials = _launch_statistics(x)
    residual_arguments: tuple[torch.Tensor | None, ...] = (None,) * 7
    if residual is not None and residual_norm is not None:
        residual_arguments = (*_launch_statistics(residual), *residual_norm, statistics[2:])
    launch = plan("apply", x)
    _norm_apply_kernel[launch.grid](
        x,
        shift,
        partials,
        weight,
        bias,
        running_mean,
        running_var,
        statistics,
        residual,
        *residual_arguments,
        y,
        mask if mask.numel() else None,
        num_rows,
        num_channels,
        partials.shape[1],
        momentum,
        eps,
        relu,
        **launch.options,
    )
    return y, statistics, mask


def _launch_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shift, (C,), and the sums of each program, (2, P, C)."""
    num_channels = x.shape[1]
    launch = plan("statistics", x)
    partials = torch.empty((2, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty(num_channels, dtype=torch.float32, device=x.device)
    _norm_statistics_kernel[launch.grid](
        x, shift, partials, x.numel() // num_channels, num_channels, **launch.options
    )
    return shift, partials
