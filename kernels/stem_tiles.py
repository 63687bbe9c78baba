"""Compute a convolution of images as a product of matrices: for `stem_conv` and `stem_conv_norm_act`.

The product is that of M = B·H·W pixels by K taps and K taps by O output channels. The K = 9·C values under
the window of a pixel are gathered for one tile of pixels at a time. They are never written: the images are so
small that the caches hold them.

Tap k = (3·(row of the window) + column of the window)·C + channel, which is the order of a channels_last
weight in memory. Tap 9·C is 1 for every pixel. The taps after it, up to a power of two, are 0.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.tiles import FP_FUSION, Launch, plan_grid


class Tiling(NamedTuple):
    """The cut of M pixels into tiles and programs, for one kernel."""

    pixels: int  # of a tile in half precision; half as many in float32; a power of two, at least 32
    warps: int
    programs: int  # for each multiprocessor of the GPU
    stages: int  # of the pipeline through shared memory that loads dy; 1: no pipeline
    # at most this many for each thread, in half precision, so that several programs fit on a multiprocessor
    registers: int | None


TILINGS = {
    "forward": Tiling(128, 4, 4, 1, 128),
    "weight gradient": Tiling(128, 4, 3, 3, None),
    # of the convolution with its batch norm
    "moments": Tiling(128, 4, 4, 1, None),
    "apply": Tiling(128, 4, 4, 1, 128),
    "gradient sums": Tiling(128, 8, 2, 2, 128),
}
_BLOCK_CHANNELS = 64  # output channels of a tile, at most
BLOCK_PARTIALS = 128  # sums of programs that are added at a time
_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def gather_taps(  # noqa: PLR0913
    images_ptr,  # (M, C)
    tile,
    pixel,  # numbers of the pixels in the tile
    num_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return (pixels, BLOCK_TAPS): the taps of the pixels of a tile, 0 beyond the border, and the tap 1."""
    ROW: tl.constexpr = 3 * CHANNELS  # taps in a row of the window
    start = tl.cast(tile, tl.int64) * pixel.shape[0]
    inside = _taps_inside(start, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS)
    tap = tl.arange(0, BLOCK_TAPS)
    exists = (inside[:, None] & (1 << tap)[None, :]) != 0
    step = ((tap // ROW - 1) * WIDTH + tap // CHANNELS % 3 - 1) * CHANNELS + tap % CHANNELS
    one = tl.where(tap == 3 * ROW, 1.0, 0.0)[None, :].to(images_ptr.dtype.element_ty)
    pointers = images_ptr + start * CHANNELS + (pixel[:, None] * CHANNELS + step[None, :])
    return tl.load(pointers, mask=exists, other=one).to(DTYPE).to(OPERANDS)


@triton.jit
def _taps_inside(start, pixel, num_pixels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Return one bit for each tap of each pixel: 1 if the tap is inside the image.

    The bits of all taps, of the first row's taps and of the first column's taps are constants. So the test
    for a border costs one instruction for each tap.
    """
    ROW: tl.constexpr = 3 * CHANNELS
    ALL: tl.constexpr = (1 << 3 * ROW) - 1
    TOP: tl.constexpr = (1 << ROW) - 1
    LEFT: tl.constexpr = ((1 << CHANNELS) - 1) * (1 + (1 << ROW) + (1 << 2 * ROW))
    place = ((start % (HEIGHT * WIDTH)).to(tl.int32) + pixel).to(tl.uint32)  # unsigned divisions are shorter
    row, column = place // WIDTH % HEIGHT, place % WIDTH
    inside = tl.where(pixel < num_pixels - start, ALL, 0)
    inside = tl.where(row == 0, inside & (ALL - TOP), inside)
    inside = tl.where(row == HEIGHT - 1, inside & (ALL - (TOP << 2 * ROW)), inside)
    inside = tl.where(column == 0, inside & (ALL - LEFT), inside)
    return tl.where(column == WIDTH - 1, inside & (ALL - (LEFT << 2 * CHANNELS)), inside)


@triton.jit
def load_weight(
    weight_ptr,  # (O, 9·C)
    channel,
    num_channels,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return (BLOCK_TAPS, channels): the weight of each tap and channel, 0 for taps past the window."""
    tap = tl.arange(0, BLOCK_TAPS)[:, None]
    exists = (tap < 9 * CHANNELS) & (channel < num_channels)[None, :]
    weight = tl.load(weight_ptr + channel[None, :] * (9 * CHANNELS) + tap, mask=exists, other=0.0)
    return weight.to(DTYPE).to(OPERANDS)


@triton.jit
def store_partial(partials_ptr, sums, channel, num_channels, BLOCK_TAPS: tl.constexpr):
    """Write a program's sums, (output channels, BLOCK_TAPS), to its part of (O, P, BLOCK_TAPS)."""
    tap = tl.arange(0, BLOCK_TAPS)
    partial = channel[:, None] * tl.num_programs(0) + tl.program_id(0)
    tl.store(partials_ptr + partial * BLOCK_TAPS + tap[None, :], sums, mask=(channel < num_channels)[:, None])


@triton.jit
def add_partials(
    partials_ptr,  # (rows, P, BLOCK_TAPS) float32
    row,
    num_partials,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Return (BLOCK_TAPS,): the sum of the P values of each tap of one row."""
    tap = tl.arange(0, BLOCK_TAPS)
    total = tl.zeros((BLOCK_PARTIALS, BLOCK_TAPS), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = (first + tl.arange(0, BLOCK_PARTIALS))[:, None]
        pointers = partials_ptr + (row * num_partials + partial) * BLOCK_TAPS + tap[None, :]
        total += tl.load(pointers, mask=partial < num_partials, other=0.0)
    return tl.sum(total, axis=0)


def block_taps(in_channels: int) -> int:
    """Return the number of taps, with the tap that is 1, padded to a size that a matrix product takes."""
    return max(triton.next_power_of_2(9 * in_channels + 1), 16)


def tap_options(images: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return the options by which a kernel sees the taps of images and the weight, rounded to a dtype."""
    return {
        "CHANNELS": images.shape[1],
        "BLOCK_TAPS": block_taps(images.shape[1]),
        "DTYPE": _TRITON_DTYPES[dtype],
        **FP_FUSION,
    }


def plan(kernel: str, images: torch.Tensor, num_channels: int | None, dtype: torch.dtype) -> Launch:
    """Return the grid and the options of a launch of a kernel on images.

    Args:
        kernel: a key of `TILINGS`.
        images: (B, C, H, W).
        num_channels: output channels; None for a kernel that has none.
        dtype: of y and of the operands of the products.
    """
    batch_size, _, height, width = images.shape
    tiling = TILINGS[kernel]
    half = dtype.itemsize == 2
    block_pixels = tiling.pixels * 2 // dtype.itemsize
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    interpreted_bfloat16 = dtype is torch.bfloat16 and images.device.type != "cuda"
    options = tap_options(images, dtype) | {
        "HEIGHT": height,
        "WIDTH": width,
        "BLOCK_PIXELS": block_pixels,
        # Triton 3.6 pipelines the float32 product wrongly: with two or three stages, 2 of 27 taps were off on
        # an H200.
        "NUM_STAGES": tiling.stages if half else 1,
        "num_warps": tiling.warps,
        "maxnreg": tiling.registers if half else None,  # float32 needs more registers
        "OPERANDS": tl.float32 if interpreted_bfloat16 else _TRITON_DTYPES[dtype],
    }
    num_columns = 1
    if num_channels is not None:
        options["BLOCK_CHANNELS"] = min(max(triton.next_power_of_2(num_channels), 16), _BLOCK_CHANNELS)
        num_columns = triton.cdiv(num_channels, options["BLOCK_CHANNELS"])
    num_tiles = triton.cdiv(batch_size * height * width, block_pixels)
    return Launch(plan_grid(num_tiles, num_columns, tiling.programs, images.device), options)
