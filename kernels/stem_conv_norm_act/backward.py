"""Run the backward pass: `kernels/stem_tiles.py` describes taps and tiles.

The gradient by the convolution's weight is the sum of T·dx over the pixels. dx comes from dz, the gradient
under the ReLU, by batch norm's three terms (Ioffe and Szegedy 2015, section 3). Two of these terms are
multiples of x and of 1, so they need only the moments of the taps. The third term needs the sum of T·dz. Its
tap 9·C, which is 1, is the gradient by batch norm's bias, and its product with w gives the gradient by batch
norm's weight. So one pass over dy gives all three gradients, and neither dx nor x is written.

| launch        | reads                         | writes                                               |
|---------------|-------------------------------|------------------------------------------------------|
| gradient sums | images, weight, dy, second dy | of each program, T·dz summed over its pixels: (O, K) |
| gradient      | these sums, moments, weight   | the gradients                                        |

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The first launch walks from the
end of dy to its start: a kernel that wrote dy the other way left the end of dy in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.stem_conv_norm_act.forward import covariances, load_norm
from kernels.stem_tiles import (
    BLOCK_PARTIALS,
    add_partials,
    gather_taps,
    load_weight,
    plan,
    store_partial,
    tap_options,
)
from kernels.tiles import locate


@triton.jit
def _stem_gradient_sums_kernel(  # noqa: PLR0913
    images_ptr,  # (M, C)
    weight_ptr,  # (O, 9·C)
    statistics_ptr,  # these three: see `load_norm`
    norm_weight_ptr,
    norm_bias_ptr,
    dy_ptr,  # (M, O)
    second_dy_ptr,  # (M, O) or None
    partials_ptr,  # (O, P, BLOCK_TAPS) float32
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
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    weight = load_weight(weight_ptr, channel, num_channels, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS)
    scale, shift = load_norm(statistics_ptr, norm_weight_ptr, norm_bias_ptr, channel, num_channels)
    pixel = tl.arange(0, BLOCK_PIXELS)
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    sums = tl.zeros((BLOCK_CHANNELS, BLOCK_TAPS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        taps = gather_taps(
            images_ptr, tile, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        z = tl.fma(tl.dot(taps, weight, input_precision="ieee"), scale, shift)
        start, offset, exists = locate(tile, channel, num_pixels, num_channels, BLOCK_PIXELS)
        dz = tl.load(dy_ptr + (start + offset), mask=exists, other=0.0).to(OPERANDS)
        if second_dy_ptr is not None:
            dz += tl.load(second_dy_ptr + (start + offset), mask=exists, other=0.0).to(OPERANDS)
        sums = tl.dot(tl.trans(tl.where(z <= 0.0, 0.0, dz)), taps, sums, input_precision="ieee")
    store_partial(partials_ptr, sums, channel, num_channels, BLOCK_TAPS)


@triton.jit(do_not_specialize=["num_partials"])
def _stem_gradient_kernel(  # noqa: PLR0913
    partials_ptr,  # (O, P, BLOCK_TAPS) float32
    moments_ptr,  # (BLOCK_TAPS, BLOCK_TAPS) float32
    weight_ptr,  # (O, 9·C)
    statistics_ptr,  # (2, O) float32: mean, 1 / standard deviation
    norm_weight_ptr,  # (O,) float32
    dweight_ptr,  # (O, 9·C)
    norm_dweight_ptr,  # (O,) float32, as is norm_dbias
    norm_dbias_ptr,
    num_channels,
    num_partials,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Compute the gradients of one output channel in each program."""
    channel = tl.program_id(0)
    tap = tl.arange(0, BLOCK_TAPS)
    sums = add_partials(partials_ptr, channel, num_partials, BLOCK_TAPS, BLOCK_PARTIALS)
    weight, tap_mean, covariance = covariances(moments_ptr, weight_ptr, channel, CHANNELS, BLOCK_TAPS, DTYPE)
    mean, inverse_std = tl.load(statistics_ptr + channel), tl.load(statistics_ptr + num_channels + channel)
    norm_dbias = tl.sum(tl.where(tap == 9 * CHANNELS, sums, 0.0), axis=0)
    norm_dweight = (tl.sum(weight * sums, axis=0) - mean * norm_dbias) * inverse_std
    scale = tl.load(norm_weight_ptr + channel) * inverse_std
    dweight = scale * (sums - tap_mean * norm_dbias - covariance * (inverse_std * norm_dweight))
    dweight = dweight.to(dweight_ptr.dtype.element_ty)
    tl.store(dweight_ptr + channel * (9 * CHANNELS) + tap, dweight, mask=tap < 9 * CHANNELS)
    tl.store(norm_dweight_ptr + channel, norm_dweight)
    tl.store(norm_dbias_ptr + channel, norm_dbias)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    statistics: torch.Tensor,
    moments: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels and return what `backward_reference` returns.

    Images, weight and gradients must be channels_last.
    """
    num_channels = len(weight)
    dtype = gradient.dtype
    grid, options = plan("gradient sums", images, num_channels, dtype)
    partials = torch.empty((num_channels, grid[0], len(moments)), dtype=torch.float32, device=images.device)
    tensors = images, weight, statistics, norm_weight, norm_bias, gradient, second_gradient, partials
    num_pixels = gradient.numel() // num_channels
    _stem_gradient_sums_kernel[grid](*tensors, num_pixels, num_channels, **options)

    gradients = torch.empty_like(weight), torch.empty_like(norm_weight), torch.empty_like(norm_bias)
    tensors = partials, moments, weight, statistics, norm_weight, *gradients
    _stem_gradient_kernel[(num_channels,)](
        *tensors, num_channels, grid[0], BLOCK_PARTIALS=BLOCK_PARTIALS, **tap_options(images, dtype)
    )
    return gradients
