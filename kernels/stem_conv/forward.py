"""The Triton kernels of `stem_conv.py` and their launches; `stem_tiles.py` describes taps and tiles.

| launch          | reads                  | writes                                           |
|-----------------|------------------------|--------------------------------------------------|
| forward         | images, weight         | y                                                |
| weight gradient | images, dy             | of each program, its sum over its pixels: (O, K) |
| sum             | what the programs left | dweight                                          |

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The weight gradient walks from the end of dy to its start,
since that kernel whose result dy is, and which walks the other way, left its end in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.stem_conv.tiles import BLOCK_PARTIALS, add_partials, block_taps, gather_taps, load_weight, plan


@triton.jit
def _stem_conv_kernel(
    images_ptr,  # (M, C)
    weight_ptr,  # (O, 9·C)
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
    pixel = tl.arange(0, BLOCK_PIXELS)
    for tile in tl.range(
        tl.program_id(0), tl.cdiv(num_pixels, BLOCK_PIXELS), tl.num_programs(0), num_stages=NUM_STAGES
    ):
        taps = gather_taps(
            images_ptr, tile, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        y = tl.dot(taps, weight, input_precision="ieee")
        start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
        exists = (pixel < num_pixels - start)[:, None] & (channel < num_channels)[None, :]
        tl.store(
            y_ptr + start * num_channels + (pixel[:, None] * num_channels + channel[None, :]),
            y.to(DTYPE),
            mask=exists,
        )


@triton.jit
def _stem_weight_gradient_kernel(
    images_ptr,  # (M, C)
    dy_ptr,  # (M, O)
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
    pixel = tl.arange(0, BLOCK_PIXELS)
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    gradient = tl.zeros((BLOCK_CHANNELS, BLOCK_TAPS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        taps = gather_taps(
            images_ptr, tile, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
        exists = (pixel < num_pixels - start)[:, None] & (channel < num_channels)[None, :]
        dy = tl.load(
            dy_ptr + start * num_channels + (pixel[:, None] * num_channels + channel[None, :]),
            mask=exists,
            other=0.0,
        )
        gradient = tl.dot(tl.trans(dy.to(OPERANDS)), taps, gradient, input_precision="ieee")
    tap = tl.arange(0, BLOCK_TAPS)
    partial = channel[:, None] * num_programs + program
    tl.store(
        partials_ptr + partial * BLOCK_TAPS + tap[None, :], gradient, mask=(channel < num_channels)[:, None]
    )


@triton.jit(do_not_specialize=["num_partials"])
def _stem_weight_sum_kernel(
    partials_ptr,  # (O, P, BLOCK_TAPS) float32
    dweight_ptr,  # (O, 9·C)
    num_partials,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """One program for each output channel."""
    tap = tl.arange(0, BLOCK_TAPS)
    total = add_partials(partials_ptr, tl.program_id(0), num_partials, BLOCK_TAPS, BLOCK_PARTIALS)
    dweight = dweight_ptr + tl.program_id(0) * (9 * CHANNELS) + tap
    tl.store(dweight, total.to(dweight_ptr.dtype.element_ty), mask=tap < 9 * CHANNELS)


def forward_output(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    batch_size, _, height, width = images.shape
    shape = (batch_size, len(weight), height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def launch_forward(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return y, (B, O, H, W) of this dtype, channels_last. Images and weight must be channels_last."""
    y = forward_output(images, weight, dtype)
    num_channels = len(weight)
    grid, options = plan("forward", images, num_channels, dtype)
    _stem_conv_kernel[grid](images, weight, y, y.numel() // num_channels, num_channels, **options)
    return y


def launch_weight_gradient(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run the kernels of the gradient by the weight, like the weight in shape, dtype and strides. All must be channels_last."""
    num_channels = len(weight)
    grid, options = plan("weight gradient", images, num_channels, dy.dtype)
    taps = block_taps(images.shape[1])
    partials = torch.empty((num_channels, grid[0], taps), dtype=torch.float32, device=dy.device)
    _stem_weight_gradient_kernel[grid](
        images, dy, partials, dy.numel() // num_channels, num_channels, **options
    )
    dweight = torch.empty_like(weight)
    _stem_weight_sum_kernel[(num_channels,)](
        partials,
        dweight,
        grid[0],
        CHANNELS=images.shape[1],
        BLOCK_TAPS=taps,
        BLOCK_PARTIALS=BLOCK_PARTIALS,
        enable_fp_fusion=True,
    )
    return dweight
