"""Run the convolution, bias and GELU as one launch, and cut the output into tiles.

The convolution is a product of matrices: that of M pixels of the output by K taps, and of K taps by O output
channels. The K = 4·C values under the window of a pixel are gathered for one tile of pixels at a time. They
are never written: the images are so small that the caches hold them.

Tap k = (2·(row of the window) + column of the window)·C + channel, which is the order of a channels_last
weight in memory. The taps after the window's, up to a power of two, are 0.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.activations import activate
from kernels.tiles import FP_FUSION, Launch, locate, plan_grid, store


class Tiling(NamedTuple):
    """The cut of M pixels into tiles and programs, for one kernel."""

    pixels: int  # of a tile in half precision; half as many in float32; a power of two, at least 32
    warps: int
    programs: int  # for each multiprocessor of the GPU


# Programs: as many as the registers of a multiprocessor hold, or a few less.
TILINGS = {"forward": Tiling(64, 2, 12), "bias gradient": Tiling(64, 2, 8)}
_MIN_TAPS = 16  # a matrix product takes no fewer
_MAX_BLOCK_CHANNELS = 64
_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def load_parameters(  # noqa: PLR0913
    weight_ptr,  # (O, 4·C)
    bias_ptr,  # (O,)
    channel,
    TAPS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return the weight, (BLOCK_TAPS, channels), and the bias, (1, channels) float32; 0 beyond their ends."""
    tap = tl.arange(0, BLOCK_TAPS)[:, None]
    in_channels = (channel < NUM_CHANNELS)[None, :]
    pointers = weight_ptr + channel[None, :] * TAPS + tap
    weight = tl.load(pointers, mask=(tap < TAPS) & in_channels, other=0.0).to(DTYPE).to(OPERANDS)
    return weight, tl.load(bias_ptr + channel[None, :], mask=in_channels, other=0.0).to(tl.float32)


@triton.jit
def convolve(  # noqa: PLR0913
    images_ptr,  # (B, HEIGHT, WIDTH, CHANNELS)
    tile,
    num_pixels,
    parameters,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return the convolution and bias of a tile, (pixels, channels) float32."""
    weight, bias = parameters
    PIXELS: tl.constexpr = (HEIGHT - 1) * (WIDTH - 1)  # of an output image
    first = tl.cast(tile, tl.int64) * BLOCK_PIXELS
    image = first // PIXELS
    number = tl.arange(0, BLOCK_PIXELS)
    pixel = ((first - image * PIXELS).to(tl.int32) + number).to(tl.uint32)  # unsigned divisions are shorter
    # a window begins at this pixel of the input: it has one more column, and one more row for each image
    place = pixel + pixel // (WIDTH - 1) + pixel // PIXELS * WIDTH
    pointers = images_ptr + image * (HEIGHT * WIDTH * CHANNELS) + place.to(tl.int32) * CHANNELS
    exists = number < num_pixels - first
    taps = _gather(pointers, exists, 0, 1, weight.shape[0], WIDTH, CHANNELS)
    taps = tl.reshape(taps, (BLOCK_PIXELS, weight.shape[0]))
    return tl.dot(taps.to(DTYPE).to(OPERANDS), weight, input_precision="ieee") + bias


@triton.jit
def _gather(
    pointers,  # of the first value under the window of each pixel
    exists,
    FIRST: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Return every STEP-th tap from FIRST on, (pixels, 2, …, 2).

    Each thread loads all taps of its pixels, so that it computes one address for a pixel and none for a tap.
    """
    if STEP == BLOCK_TAPS:
        ROW: tl.constexpr = 2 * CHANNELS
        if FIRST < 2 * ROW:
            return tl.load(
                pointers + (FIRST // ROW * (WIDTH * CHANNELS) + FIRST % ROW), mask=exists, other=0.0
            )
        else:
            return tl.zeros(pointers.shape, pointers.dtype.element_ty)
    else:
        even = _gather(pointers, exists, FIRST, 2 * STEP, BLOCK_TAPS, WIDTH, CHANNELS)
        odd = _gather(pointers, exists, FIRST + STEP, 2 * STEP, BLOCK_TAPS, WIDTH, CHANNELS)
        return tl.join(even, odd)


@triton.jit
def _whitening_stem_kernel(  # noqa: PLR0913
    images_ptr,  # (B, HEIGHT, WIDTH, CHANNELS)
    weight_ptr,  # (O, 4·C)
    bias_ptr,  # (O,)
    y_ptr,  # (M, ROW_CHANNELS)
    num_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    ROW_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    parameters = load_parameters(
        weight_ptr, bias_ptr, channel, 4 * CHANNELS, BLOCK_TAPS, NUM_CHANNELS, DTYPE, OPERANDS
    )
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=1):
        z = convolve(
            images_ptr, tile, num_pixels, parameters, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, DTYPE, OPERANDS
        )
        # channels beyond O have no weight and no bias, and so the value gelu(0) = 0
        elements = locate(tile, channel, num_pixels, ROW_CHANNELS, BLOCK_PIXELS)
        store(y_ptr, elements, activate(z, "gelu"), False)


def plan(kernel: str, images: torch.Tensor, num_channels: int, y: torch.Tensor) -> Launch:
    """Return the grid and the options of a launch of a kernel on images; y is the output or its gradient."""
    dtype, row_channels = y.dtype, y.shape[1]
    batch_size, in_channels, height, width = images.shape
    tiling = TILINGS[kernel]
    block_pixels = tiling.pixels * 2 // dtype.itemsize
    block_channels = min(max(triton.next_power_of_2(row_channels), 16), _MAX_BLOCK_CHANNELS)
    # Triton's interpreter multiplies the bits of bfloat16 as if they were integers.
    interpreted_bfloat16 = dtype is torch.bfloat16 and images.device.type != "cuda"
    options = {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": in_channels,
        "NUM_CHANNELS": num_channels,
        "ROW_CHANNELS": row_channels,  # a constant, so that rows of 24 channels are written in 16 bytes each
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_TAPS": max(triton.next_power_of_2(4 * in_channels), _MIN_TAPS),
        "BLOCK_CHANNELS": block_channels,
        "DTYPE": _TRITON_DTYPES[dtype],
        "OPERANDS": tl.float32 if interpreted_bfloat16 else _TRITON_DTYPES[dtype],
        "num_warps": tiling.warps,
        **FP_FUSION,
    }
    num_tiles = triton.cdiv(batch_size * (height - 1) * (width - 1), block_pixels)
    num_columns = triton.cdiv(row_channels, block_channels)
    return Launch(plan_grid(num_tiles, num_columns, tiling.programs, images.device), options)


def forward_output(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, channels: int
) -> torch.Tensor:
    """Return a tensor for y, (B, channels, H - 1, W - 1), channels_last."""
    batch_size, _, height, width = images.shape
    shape = (batch_size, channels, height - 1, width - 1)
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)


def launch_forward(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, channels: int
) -> torch.Tensor:
    """Return y of `dtype`, its channels beyond O 0. Images and weight must be channels_last."""
    y = forward_output(images, weight, bias, dtype, channels)
    grid, options = plan("forward", images, len(weight), y)
    _whitening_stem_kernel[grid](images, weight, bias, y, y.numel() // channels, **options)
    return y
