"""What the kernels of the stem's operators have in common: how they see a convolution of images as a product of matrices.

M = B·H·W pixels by K taps, times K taps by O output channels. The K = 9·C values under the window of a pixel are gathered for a tile of
pixels at a time, from images so small that the caches hold them, and never written. Tap k = (3·(row of the window) + column of the
window)·C + channel, as a channels_last weight lies in memory. Tap 9·C is 1 for every pixel, and the rest, up to a power of two, are 0.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
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
    stages: int  # of the pipeline through shared memory that loads dy; 1 is none
    registers: (
        int | None
    )  # of a thread at most, in half precision, so that the programs fit on a multiprocessor together


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
def gather_taps(
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
    taps = tl.load(
        images_ptr + start * CHANNELS + (pixel[:, None] * CHANNELS + step[None, :]), mask=exists, other=one
    )
    return taps.to(DTYPE).to(OPERANDS)


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
    """Return (BLOCK_TAPS, number of `channel`): the weight of each tap, of no tap but those of the window, and output channel."""
    tap = tl.arange(0, BLOCK_TAPS)[:, None]
    exists = (tap < 9 * CHANNELS) & (channel < num_channels)[None, :]
    return (
        tl.load(weight_ptr + channel[None, :] * (9 * CHANNELS) + tap, mask=exists, other=0.0)
        .to(DTYPE)
        .to(OPERANDS)
    )


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


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
    )  # in the interpreter


def tap_options(images: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return how a kernel sees the taps of images and the weight, rounded to a dtype."""
    return {
        "CHANNELS": images.shape[1],
        "BLOCK_TAPS": block_taps(images.shape[1]),
        "DTYPE": _TRITON_DTYPES[dtype],
        "enable_fp_fusion": True,  # Triton 3.9 warns where its default is not asked for by name
    }


def plan(
    kernel: str, images: torch.Tensor, num_channels: int | None, dtype: torch.dtype
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Return grid and options of a launch of a kernel on images, for a number of output channels, if it has such, and a dtype."""
    batch_size, _, height, width = images.shape
    tiling = TILINGS[kernel]
    block_pixels = tiling.pixels * 2 // dtype.itemsize
    options = tap_options(images, dtype) | {
        "HEIGHT": height,
        "WIDTH": width,
        "BLOCK_PIXELS": block_pixels,
        # Triton 3.6 pipelines the float32 product wrongly: with two stages or three, 2 of 27 taps were off on an H200
        "NUM_STAGES": tiling.stages if dtype.itemsize == 2 else 1,
        "num_warps": tiling.warps,
        "maxnreg": tiling.registers if dtype.itemsize == 2 else None,  # float32 is too large for it
        # of the matrix products. Triton's interpreter multiplies the bits of bfloat16 as if they were integers
        "OPERANDS": tl.float32
        if dtype is torch.bfloat16 and images.device.type != "cuda"
        else _TRITON_DTYPES[dtype],
    }
    columns = 1
    if num_channels is not None:
        options["BLOCK_CHANNELS"] = min(max(triton.next_power_of_2(num_channels), 16), _BLOCK_CHANNELS)
        columns = triton.cdiv(num_channels, options["BLOCK_CHANNELS"])
    programs = max(1, tiling.programs * _num_multiprocessors(images.device) // columns)
    return (min(programs, triton.cdiv(batch_size * height * width, block_pixels)), columns), options


def block_taps(in_channels: int) -> int:
    """The taps of a window, and the one that is 1, padded to what a matrix product takes."""
    return max(triton.next_power_of_2(9 * in_channels + 1), 16)
