"""The backward kernels of `stem_conv_norm_act.py` and their launches; `stem_tiles.py` describes taps and tiles.

The gradient by the convolution's weight is the sum of T·dx over the pixels, where dx comes from dz, the gradient under the ReLU, by batch
norm's three terms (Ioffe and Szegedy 2015, section 3). Two of these are multiples of x and of 1, so that they need only the moments of
the taps; what remains is the sum of T·dz. Its tap 9·C, which is 1, is the gradient by batch norm's bias, and its product with w that by
its weight: one pass over dy gives all three, and neither dx nor x is written.

| launch        | reads                           | writes                                                  |
|---------------|---------------------------------|---------------------------------------------------------|
| gradient sums | images, weight, dy, second dy   | of each program, the sum of T·dz over its pixels: (O, K) |
| gradient      | these, moments, weight          | the gradients                                           |

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The first walks from the end of dy to its start, since a
kernel that wrote dy the other way left its end in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.stem_conv.tiles import BLOCK_PARTIALS, add_partials, gather_taps, load_weight, plan, tap_options
from kernels.stem_conv_norm_act.forward import covariances, load_norm


@triton.jit
def _stem_gradient_sums_kernel(
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
            images_ptr, tile, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        z = tl.fma(tl.dot(taps, weight, input_precision="ieee"), scale, shift)
        start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
        offset = start * num_channels + (pixel[:, None] * num_channels + channel[None, :])
        exists = (pixel < num_pixels - start)[:, None] & (channel < num_channels)[None, :]
        dz = tl.load(dy_ptr + offset, mask=exists, other=0.0).to(OPERANDS)
        if second_dy_ptr is not None:
            dz += tl.load(second_dy_ptr + offset, mask=exists, other=0.0).to(OPERANDS)
        dz = tl.where(z <= 0.0, 0.0, dz)
        sums = tl.dot(tl.trans(dz), taps, sums, input_precision="ieee")
    tap = tl.arange(0, BLOCK_TAPS)
    partial = channel[:, None] * num_programs + program
    tl.store(partials_ptr + partial * BLOCK_TAPS + tap[None, :], sums, mask=(channel < num_channels)[:, None])


@triton.jit(do_not_specialize=["num_partials"])
def _stem_gradient_kernel(
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
    """One program for each output channel."""
    channel = tl.program_id(0)
    tap = tl.arange(0, BLOCK_TAPS)
    sums = add_partials(partials_ptr, channel, num_partials, BLOCK_TAPS, BLOCK_PARTIALS)
    weight, tap_mean, covariance = covariances(moments_ptr, weight_ptr, channel, CHANNELS, BLOCK_TAPS, DTYPE)
    mean, inverse_std = tl.load(statistics_ptr + channel), tl.load(statistics_ptr + num_channels + channel)
    norm_dbias = tl.sum(tl.where(tap == 9 * CHANNELS, sums, 0.0), axis=0)
    norm_dweight = (tl.sum(weight * sums, axis=0) - mean * norm_dbias) * inverse_std
    scale = tl.load(norm_weight_ptr + channel) * inverse_std
    dweight = scale * (sums - tap_mean * norm_dbias - covariance * (inverse_std * norm_dweight))
    in_window = tap < 9 * CHANNELS
    tl.store(
        dweight_ptr + channel * (9 * CHANNELS) + tap, dweight.to(dweight_ptr.dtype.element_ty), mask=in_window
    )
    tl.store(norm_dweight_ptr + channel, norm_dweight)
    tl.store(norm_dbias_ptr + channel, norm_dbias)


def launch_backward(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    statistics: torch.Tensor,
    moments: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels; for the results see `backward_reference`. Images, weight and gradients must be channels_last."""
    num_channels = len(weight)
    dtype = gradient.dtype
    grid, options = plan("gradient sums", images, num_channels, dtype)
    partials = torch.empty((num_channels, grid[0], len(moments)), dtype=torch.float32, device=images.device)
    _stem_gradient_sums_kernel[grid](
        images,
        weight,
        statistics,
        norm_weight,
        norm_bias,
        gradient,
        second_gradient,
        partials,
        gradient.numel() // num_channels,
        num_channels,
        **options,
    )
    gradients = torch.empty_like(weight), torch.empty_like(norm_weight), torch.empty_like(norm_bias)
    _stem_gradient_kernel[(num_channels,)](
        partials,
        moments,
        weight,
        statistics,
        norm_weight,
        *gradients,
        num_channels,
        grid[0],
        BLOCK_PARTIALS=BLOCK_PARTIALS,
        **tap_options(images, dtype),
    )
    return gradients
