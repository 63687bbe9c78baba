"""The Triton kernels of `stem_conv.py` and their launches.

The convolution as a matrix product: M = B·H·W pixels by K taps, times K taps by O output channels. The K = 9·C values under the window
of a pixel are gathered for a tile of pixels at a time, from images so small that the caches hold them, and never written. Tap
k = (3·(row of the window) + column of the window)·C + channel, as a channels_last weight lies in memory. One more tap is 1 for every pixel,
and the rest, up to a power of two, are 0.

| launch          | reads                | writes                                            |
|-----------------|----------------------|---------------------------------------------------|
| forward         | images, weight       | y                                                 |
| weight gradient | images, dy           | of each program, its sum over its pixels: (O, K)  |
| sum             | what the programs left | dweight                                         |

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The weight gradient walks from the end of dy to its start,
since that kernel whose result dy is, and which walks the other way, left its end in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Tiling(NamedTuple):
    """How a kernel cuts M pixels into tiles and programs."""

    pixels: int  # of a tile in half precision, half as many in float32; a power of two, at least 32
    warps: int
    programs: int  # for each multiprocessor of the GPU
    stages: int  # of the pipeline that loads dy through shared memory


TILINGS = {"forward": Tiling(128, 4, 4, 1), "weight gradient": Tiling(128, 4, 3, 3)}
_BLOCK_CHANNELS = 64  # output channels of a tile, at most
_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_BLOCK_PARTIALS = 128  # that the sum kernel adds at a time


@triton.jit
def _taps(
    images_ptr,  # (M, C)
    tile,
    num_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return (BLOCK_PIXELS, BLOCK_TAPS): what the windows of the pixels of a tile hold, 0 beyond the border, and the tap that is 1."""
    ROW: tl.constexpr = 3 * CHANNELS  # taps in a row of the window
    # One bit for each tap: all, those of the first row and those of the first column. With them a border costs one instruction a tap.
    ALL: tl.constexpr = (1 << 3 * ROW) - 1
    TOP: tl.constexpr = (1 << ROW) - 1
    LEFT: tl.constexpr = ((1 << CHANNELS) - 1) * (1 + (1 << ROW) + (1 << 2 * ROW))
    start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
    pixel = tl.arange(0, BLOCK_PIXELS)
    place = ((start % (HEIGHT * WIDTH)).to(tl.int32) + pixel).to(tl.uint32)  # unsigned divisions are shorter
    row, column = place // WIDTH % HEIGHT, place % WIDTH
    inside = tl.where(pixel < num_pixels - start, ALL, 0)
    inside = tl.where(row == 0, inside & (ALL - TOP), inside)
    inside = tl.where(row == HEIGHT - 1, inside & (ALL - (TOP << 2 * ROW)), inside)
    inside = tl.where(column == 0, inside & (ALL - LEFT), inside)
    inside = tl.where(column == WIDTH - 1, inside & (ALL - (LEFT << 2 * CHANNELS)), inside)

    tap = tl.arange(0, BLOCK_TAPS)
    exists = (inside[:, None] & (1 << tap)[None, :]) != 0
    step = ((tap // ROW - 1) * WIDTH + tap // CHANNELS % 3 - 1) * CHANNELS + tap % CHANNELS
    one = tl.where(tap == 3 * ROW, 1.0, 0.0)[None, :].to(images_ptr.dtype.element_ty)
    taps = tl.load(images_ptr + start * CHANNELS + (pixel[:, None] * CHANNELS + step[None, :]), mask=exists, other=one)
    return taps.to(DTYPE).to(OPERANDS)


@triton.jit
def _weight(
    weight_ptr,  # (O, C, 3, 3) of any strides
    channel,
    num_channels,
    stride_o,
    stride_c,
    stride_row,
    stride_column,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
):
    """Return the pointers (BLOCK_TAPS, number of `channel`) to the weight of each tap and output channel, and which exist."""
    tap = tl.arange(0, BLOCK_TAPS)[:, None]
    offset = tap // (3 * CHANNELS) * stride_row + tap // CHANNELS % 3 * stride_column + tap % CHANNELS * stride_c
    return weight_ptr + offset + channel[None, :] * stride_o, (tap < 9 * CHANNELS) & (channel < num_channels)[None, :]


@triton.jit
def _forward_kernel(
    images_ptr,  # (M, C)
    weight_ptr,  # (O, C, 3, 3)
    y_ptr,  # (M, O)
    num_pixels,
    num_channels,
    stride_o,
    stride_c,
    stride_row,
    stride_column,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    pointers, weighed = _weight(weight_ptr, channel, num_channels, stride_o, stride_c, stride_row, stride_column, CHANNELS, BLOCK_TAPS)
    weight = tl.load(pointers, mask=weighed, other=0.0).to(dtype).to(OPERANDS)
    pixel = tl.arange(0, BLOCK_PIXELS)
    for tile in tl.range(tl.program_id(0), tl.cdiv(num_pixels, BLOCK_PIXELS), tl.num_programs(0), num_stages=NUM_STAGES):
        taps = _taps(images_ptr, tile, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, BLOCK_TAPS, dtype, OPERANDS)
        y = tl.dot(taps, weight, input_precision="ieee")
        start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
        exists = (pixel < num_pixels - start)[:, None] & (channel < num_channels)[None, :]
        tl.store(y_ptr + start * num_channels + (pixel[:, None] * num_channels + channel[None, :]), y.to(dtype), mask=exists)


@triton.jit
def _weight_gradient_kernel(
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
    OPERANDS: tl.constexpr,
):
    dtype: tl.constexpr = dy_ptr.dtype.element_ty
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    pixel = tl.arange(0, BLOCK_PIXELS)
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    gradient = tl.zeros((BLOCK_CHANNELS, BLOCK_TAPS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        taps = _taps(images_ptr, tile, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, BLOCK_TAPS, dtype, OPERANDS)
        start = tl.cast(tile, tl.int64) * BLOCK_PIXELS
        exists = (pixel < num_pixels - start)[:, None] & (channel < num_channels)[None, :]
        dy = tl.load(dy_ptr + start * num_channels + (pixel[:, None] * num_channels + channel[None, :]), mask=exists, other=0.0)
        gradient = tl.dot(tl.trans(dy.to(OPERANDS)), taps, gradient, input_precision="ieee")
    tap = tl.arange(0, BLOCK_TAPS)
    partial = channel[:, None] * num_programs + program
    tl.store(partials_ptr + partial * BLOCK_TAPS + tap[None, :], gradient, mask=(channel < num_channels)[:, None])


@triton.jit(do_not_specialize=["num_partials"])
def _sum_kernel(
    partials_ptr,  # (O, P, BLOCK_TAPS) float32
    dweight_ptr,  # (O, C, 3, 3)
    num_partials,
    num_channels,
    stride_o,
    stride_c,
    stride_row,
    stride_column,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """One program for each output channel."""
    tap = tl.arange(0, BLOCK_TAPS)
    partials = partials_ptr + tl.program_id(0) * num_partials * BLOCK_TAPS
    total = tl.zeros((BLOCK_PARTIALS, BLOCK_TAPS), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = (first + tl.arange(0, BLOCK_PARTIALS))[:, None]
        total += tl.load(partials + partial * BLOCK_TAPS + tap[None, :], mask=partial < num_partials, other=0.0)
    channel = tl.program_id(0) + tl.arange(0, 1)
    pointers, weighed = _weight(dweight_ptr, channel, num_channels, stride_o, stride_c, stride_row, stride_column, CHANNELS, BLOCK_TAPS)
    tl.store(pointers, tl.sum(total, axis=0)[:, None].to(dweight_ptr.dtype.element_ty), mask=weighed)


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2  # in the interpreter


def _plan(kernel: str, images: torch.Tensor, num_channels: int, dtype: torch.dtype) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return grid and options of a launch of a kernel on images, for a number of output channels and the dtype of y."""
    batch_size, in_channels, height, width = images.shape
    tiling = TILINGS[kernel]
    block_pixels = tiling.pixels * 2 // dtype.itemsize
    block_channels = min(max(triton.next_power_of_2(num_channels), 16), _BLOCK_CHANNELS)
    columns = triton.cdiv(num_channels, block_channels)
    programs = max(1, tiling.programs * _num_multiprocessors(images.device) // columns)
    options = {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": in_channels,
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_TAPS": block_taps(in_channels),
        "BLOCK_CHANNELS": block_channels,
        "NUM_STAGES": tiling.stages,
        "num_warps": tiling.warps,
        # of the matrix products: the dtype of y, but Triton's interpreter multiplies the bits of bfloat16 as if they were integers
        "OPERANDS": tl.float32 if dtype is torch.bfloat16 and images.device.type != "cuda" else _TRITON_DTYPES[dtype],
        "enable_fp_fusion": True,  # Triton 3.9 warns where its default is not asked for by name
    }
    return (min(programs, triton.cdiv(batch_size * height * width, block_pixels)), columns), options


def block_taps(in_channels: int) -> int:
    """The taps of a window, and the one that is 1, padded to what a matrix product takes."""
    return max(triton.next_power_of_2(9 * in_channels + 1), 16)


def forward_output(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    batch_size, _, height, width = images.shape
    shape = (batch_size, len(weight), height, width)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def launch_forward(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return y, (B, O, H, W) of this dtype, channels_last. The images must be channels_last, the weight may have any strides."""
    y = forward_output(images, weight, dtype)
    num_channels = len(weight)
    grid, options = _plan("forward", images, num_channels, dtype)
    _forward_kernel[grid](images, weight, y, y.numel() // num_channels, num_channels, *weight.stride(), **options)
    return y


def launch_weight_gradient(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run the kernels of the gradient by the weight, like the weight in shape, dtype and strides. dy and images must be channels_last."""
    num_channels = len(weight)
    grid, options = _plan("weight gradient", images, num_channels, dy.dtype)
    taps = block_taps(images.shape[1])
    partials = torch.empty((num_channels, grid[0], taps), dtype=torch.float32, device=dy.device)
    _weight_gradient_kernel[grid](images, dy, partials, dy.numel() // num_channels, num_channels, **options)
    dweight = torch.empty_like(weight)
    _sum_kernel[(num_channels,)](
        partials,
        dweight,
        grid[0],
        num_channels,
        *dweight.stride(),
        CHANNELS=images.shape[1],
        BLOCK_TAPS=taps,
        BLOCK_PARTIALS=_BLOCK_PARTIALS,
        enable_fp_fusion=True,
    )
    return dweight
