"""Run the forward pass: `kernels/stem_tiles.py` describes taps and tiles.

T, (M, K), are the taps of all M pixels, and w, (K,), is the weight of an output channel. The convolution is x
= T w. Its mean is m·w and its variance w·S·w, where m is the mean of the taps and S their covariance, (K, K).
m and S are the same for all channels and weights. So one pass over the images, a fortieth of the bytes of x,
is enough, and x itself is never written.

| launch     | reads                      | writes                                                       |
|------------|----------------------------|--------------------------------------------------------------|
| moments    | images                     | of each program, the sum of the products of two taps: (K, K) |
| sum        | the sums of the programs   | moments: the mean over the pixels of the products, (K, K)    |
| statistics | moments, weight            | mean and 1 / standard deviation of each channel              |
| apply      | images, weight, statistics | y                                                            |

Tap 9·C is 1: its row of the moments is m, and S is the moments less m·mᵀ. The rounding error of the variance
is that of the moments, about 1e-6 of the variance of the pixels. Relative to the variance of x the error is
larger by as much as w suppresses what neighbouring pixels have in common.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.arguments import Norm
from kernels.stem_tiles import (
    BLOCK_PARTIALS,
    add_partials,
    block_taps,
    gather_taps,
    load_weight,
    plan,
    tap_options,
)
from kernels.tiles import FP_FUSION, locate


@triton.jit
def _stem_moments_kernel(  # noqa: PLR0913
    images_ptr,  # (M, C)
    partials_ptr,  # (BLOCK_TAPS, P, BLOCK_TAPS) float32
    num_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    pixel = tl.arange(0, BLOCK_PIXELS)
    products = tl.zeros((BLOCK_TAPS, BLOCK_TAPS), tl.float32)
    for tile in tl.range(program, tl.cdiv(num_pixels, BLOCK_PIXELS), num_programs, num_stages=NUM_STAGES):
        taps = gather_taps(
            images_ptr, tile, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        products = tl.dot(tl.trans(taps), taps, products, input_precision="ieee")
    tap = tl.arange(0, BLOCK_TAPS)
    tl.store(partials_ptr + (tap[:, None] * num_programs + program) * BLOCK_TAPS + tap[None, :], products)


@triton.jit(do_not_specialize=["num_partials"])
def _stem_moments_sum_kernel(
    partials_ptr,  # (BLOCK_TAPS, P, BLOCK_TAPS) float32
    moments_ptr,  # (BLOCK_TAPS, BLOCK_TAPS) float32
    num_pixels,
    num_partials,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Average the products of one tap in each program."""
    total = add_partials(partials_ptr, tl.program_id(0), num_partials, BLOCK_TAPS, BLOCK_PARTIALS)
    tl.store(moments_ptr + tl.program_id(0) * BLOCK_TAPS + tl.arange(0, BLOCK_TAPS), total / num_pixels)


@triton.jit
def covariances(
    moments_ptr,  # (BLOCK_TAPS, BLOCK_TAPS) float32
    weight_ptr,  # (O, 9·C)
    channel,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Return the weight w of an output channel, the mean of each tap, and S·w.

    S·w is the covariance of each tap with x. The shape of each is (BLOCK_TAPS,).
    """
    tap = tl.arange(0, BLOCK_TAPS)
    weight = tl.load(weight_ptr + channel * (9 * CHANNELS) + tap, mask=tap < 9 * CHANNELS, other=0.0)
    weight = weight.to(DTYPE).to(tl.float32)
    mean = tl.load(moments_ptr + 9 * CHANNELS * BLOCK_TAPS + tap)
    moments = tl.load(moments_ptr + tap[:, None] * BLOCK_TAPS + tap[None, :])
    covariance = moments - mean[:, None] * mean[None, :]
    return weight, mean, tl.sum(covariance * weight[None, :], axis=1)


@triton.jit
def _stem_statistics_kernel(  # noqa: PLR0913
    moments_ptr,  # (BLOCK_TAPS, BLOCK_TAPS) float32
    weight_ptr,  # (O, 9·C)
    running_mean_ptr,  # (O,) float32, as is running_var
    running_var_ptr,
    statistics_ptr,  # (2, O) float32: mean, 1 / standard deviation
    num_pixels,
    num_channels,
    momentum,
    eps,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Compute the statistics of one output channel in each program."""
    channel = tl.program_id(0)
    weight, tap_mean, covariance = covariances(moments_ptr, weight_ptr, channel, CHANNELS, BLOCK_TAPS, DTYPE)
    mean = tl.sum(weight * tap_mean, axis=0)
    var = tl.sum(weight * covariance, axis=0)
    var = tl.where(var < 0.0, 0.0, var)  # not a maximum, which would turn NaN into 0
    tl.store(statistics_ptr + channel, mean)
    tl.store(statistics_ptr + num_channels + channel, tl.rsqrt(var + eps))
    running_mean, running_var = tl.load(running_mean_ptr + channel), tl.load(running_var_ptr + channel)
    unbiased = var * (num_pixels / (num_pixels - 1.0))
    tl.store(running_mean_ptr + channel, running_mean + momentum * (mean - running_mean))
    tl.store(running_var_ptr + channel, running_var + momentum * (unbiased - running_var))


@triton.jit
def load_norm(
    statistics_ptr,  # (2, O) float32: mean, 1 / standard deviation
    norm_weight_ptr,  # (O,) float32, as is norm_bias
    norm_bias_ptr,
    channel,
    num_channels,
):
    """Return (1, number of `channel`) each: scale and shift, with which z = x * scale + shift."""
    exists = channel < num_channels
    scale = tl.load(norm_weight_ptr + channel, mask=exists, other=0.0)
    scale *= tl.load(statistics_ptr + num_channels + channel, mask=exists, other=0.0)
    mean = tl.load(statistics_ptr + channel, mask=exists, other=0.0)
    shift = tl.load(norm_bias_ptr + channel, mask=exists, other=0.0) - mean * scale
    return scale[None, :], shift[None, :]


@triton.jit
def _stem_apply_kernel(  # noqa: PLR0913
    images_ptr,  # (M, C)
    weight_ptr,  # (O, 9·C)
    statistics_ptr,  # these three: see `load_norm`
    norm_weight_ptr,
    norm_bias_ptr,
    y_ptr,  # (M, O)
    num_pixels,
    num_channels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    weight = load_weight(weight_ptr, channel, num_channels, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS)
    scale, shift = load_norm(statistics_ptr, norm_weight_ptr, norm_bias_ptr, channel, num_channels)
    pixel = tl.arange(0, BLOCK_PIXELS)
    first, num_tiles = tl.program_id(0), tl.cdiv(num_pixels, BLOCK_PIXELS)
    for tile in tl.range(first, num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        taps = gather_taps(
            images_ptr, tile, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        z = tl.fma(tl.dot(taps, weight, input_precision="ieee"), scale, shift)
        y = tl.where(z <= 0.0, 0.0, z).to(DTYPE)  # lets NaN pass
        start, offset, exists = locate(tile, channel, num_pixels, num_channels, BLOCK_PIXELS)
        tl.store(y_ptr + start + offset, y, mask=exists)


def forward_outputs(
    images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tensors for the results of `launch_forward`."""
    batch_size, in_channels, height, width = images.shape
    shape = (batch_size, len(weight), height, width)
    return (
        torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last),
        torch.empty((2, len(weight)), dtype=torch.float32, device=images.device),
        torch.empty((block_taps(in_channels),) * 2, dtype=torch.float32, device=images.device),
    )


def launch_forward(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    dtype: torch.dtype,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the forward kernels and return what `forward_reference` returns. Inputs must be channels_last."""
    y, statistics, moments = forward_outputs(images, weight, dtype)
    num_channels = len(weight)
    num_pixels = y.numel() // num_channels

    grid, options = plan("moments", images, None, dtype)
    partials = torch.empty((len(moments), grid[0], len(moments)), dtype=torch.float32, device=images.device)
    _stem_moments_kernel[grid](images, partials, num_pixels, **options)
    _stem_moments_sum_kernel[(len(moments),)](
        partials, moments, num_pixels, grid[0], len(moments), BLOCK_PARTIALS, **FP_FUSION
    )
    tensors = moments, weight, norm.running_mean, norm.running_var, statistics
    _stem_statistics_kernel[(num_channels,)](
        *tensors, num_pixels, num_channels, momentum, eps, **tap_options(images, dtype)
    )
    grid, options = plan("apply", images, num_channels, dtype)
    tensors = images, weight, statistics, norm.weight, norm.bias, y
    _stem_apply_kernel[grid](*tensors, num_pixels, num_channels, **options)
    return y, statistics, moments
