"""Run the convolution: `kernels/stem_tiles.py` describes taps and tiles."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.stem_tiles import gather_taps, load_weight, plan
from kernels.tiles import locate


@triton.jit
def _stem_conv_kernel(  # noqa: PLR0913
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
    first, num_tiles = tl.program_id(0), tl.cdiv(num_pixels, BLOCK_PIXELS)
    for tile in tl.range(first, num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        taps = gather_taps(
            images_ptr, tile, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        y = tl.dot(taps, weight, input_precision="ieee")
        start, offset, exists = locate(tile, channel, num_pixels, num_channels, BLOCK_PIXELS)
        tl.store(y_ptr + start + offset, y.to(DTYPE), mask=exists)


def forward_output(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor for y, (B, O, H, W), channels_last."""
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
