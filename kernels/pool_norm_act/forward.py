"""Run the forward pass: the pool writes what the kernels of `batch_norm_act` then normalise.

| launch          | reads  | writes                                               |
|-----------------|--------|------------------------------------------------------|
| pool statistics | x      | pooled x, places, two sums of each program           |
| apply           | pooled | y                                                    |

`kernels/norm_tiles.py` describes the tiles, which here are those of the pooled x, and
`kernels/batch_norm_act/forward.py` the sums.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.arguments import Norm
from kernels.batch_norm_act.forward import NormTensors, launch_apply
from kernels.norm_tiles import add_deviations, plan, store_partials
from kernels.tiles import load, locate, locate_pixels, store

# y and pooled x, (N, C, H // 2, W // 2); the places of the maxima, two bits each, and the statistics
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def pool_tile(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, C)
    tile,
    channel,
    sizes,  # number of rows and of channels of the pooled x
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """Return the maxima of a tile of windows, their places, and the elements of the pooled x."""
    num_rows, num_channels = sizes
    first_image, image, y, x = locate_pixels(tile, HEIGHT // 2, WIDTH // 2, BLOCK_ROWS)
    row = (image * HEIGHT + 2 * y) * WIDTH + 2 * x
    start = first_image * (HEIGHT * WIDTH) * num_channels
    pooled = locate(tile, channel, num_rows, num_channels, BLOCK_ROWS)
    elements = start, row[:, None] * num_channels + channel[None, :], pooled[2]
    below = x_ptr + WIDTH * num_channels
    windows = (
        load(x_ptr, elements, WHOLE_TILES, True),
        load(x_ptr + num_channels, elements, WHOLE_TILES, True),
        load(below, elements, WHOLE_TILES, True),
        load(below + num_channels, elements, WHOLE_TILES, True),
    )
    values, place = maximum(windows)
    return values, place, pooled


@triton.jit
def maximum(windows):
    """Return the maximum of four tiles and its place, 0 to 3.

    As in PyTorch it is the first of equals, or the last NaN.
    """
    best = windows[0]
    place = tl.zeros(best.shape, tl.int32)
    for number in tl.static_range(1, 4):
        takes = (windows[number] > best) | (windows[number] != windows[number])
        best = tl.where(takes, windows[number], best)
        place = tl.where(takes, number, place)
    return best, place


@triton.jit
def locate_places(row, exists, num_channels, BLOCK_CHANNELS: tl.constexpr):
    """Return the offsets and the mask of the bytes with the places of some rows.

    Each byte holds 4 channels.
    """
    BLOCK_BYTES: tl.constexpr = BLOCK_CHANNELS // 4
    byte = tl.program_id(1) * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    num_bytes = tl.cdiv(num_channels, 4)
    return row[:, None] * num_bytes + byte[None, :], exists[:, None] & (byte < num_bytes)[None, :]


@triton.jit
def store_places(places_ptr, place, tile, num_rows, num_channels, WHOLE_TILES: tl.constexpr):
    """Write two bits for each element of a tile of windows: the place of its maximum, 0 to 3."""
    BLOCK_ROWS: tl.constexpr = place.shape[0]
    BLOCK_CHANNELS: tl.constexpr = place.shape[1]
    bits = tl.reshape(place, (BLOCK_ROWS, BLOCK_CHANNELS // 4, 4)) << 2 * tl.arange(0, 4)[None, None, :]
    start, row = tl.cast(tile, tl.int64) * BLOCK_ROWS, tl.arange(0, BLOCK_ROWS)
    offset, exists = locate_places(row, row < num_rows - start, num_channels, BLOCK_CHANNELS)
    elements = start * tl.cdiv(num_channels, 4), offset, exists
    store(places_ptr, elements, tl.sum(bits, axis=2), WHOLE_TILES)


@triton.jit
def _pool_norm_statistics_kernel(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, C)
    pooled_ptr,  # (M, C)
    places_ptr,  # (M, ceil(C / 4)) uint8
    shift_ptr,  # (C,) float32
    partials_ptr,  # (2, P, C) float32: sum of pooled - shift, sum of squares of pooled - shift
    num_rows,
    num_channels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    last = tl.cdiv(num_rows, BLOCK_ROWS) - 1
    sizes = num_rows, num_channels
    values, _, _ = pool_tile(x_ptr, last, channel, sizes, HEIGHT, WIDTH, BLOCK_ROWS, WHOLE_TILES)
    shift = tl.sum(values, axis=0) / (num_rows - last * BLOCK_ROWS)
    sums = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    squares = tl.zeros((BLOCK_ROWS // FOLD, BLOCK_CHANNELS), tl.float32)
    for step in tl.range(program, last + 1, num_programs, num_stages=NUM_STAGES):
        tile = last - step
        values, place, elements = pool_tile(
            x_ptr, tile, channel, sizes, HEIGHT, WIDTH, BLOCK_ROWS, WHOLE_TILES
        )
        store(pooled_ptr, elements, values, WHOLE_TILES)
        store_places(places_ptr, place, tile, num_rows, num_channels, WHOLE_TILES)
        sums, squares = add_deviations(sums, squares, values, shift, elements[2], FOLD, WHOLE_TILES)
    store_partials(partials_ptr, sums, squares, channel, num_channels)
    if program == 0:
        tl.store(shift_ptr + channel, shift, mask=channel < num_channels)


def forward_outputs(x: torch.Tensor, num_channels: int | None = None) -> Outputs:
    """Return tensors for the results of `launch_forward`, or of a number of channels that x does not have."""
    num_images, channels_of_x, height, width = x.shape
    num_channels = num_channels or channels_of_x
    shape = num_images, num_channels, height // 2, width // 2
    y, pooled = (
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for _ in range(2)
    )
    places = x.new_empty((y.numel() // num_channels, (num_channels + 3) // 4), dtype=torch.uint8)
    return y, pooled, places, x.new_empty((2, num_channels), dtype=torch.float32)


def launch_forward(x: torch.Tensor, norm: Norm, activation: str, momentum: float, eps: float) -> Outputs:
    """Run the forward kernels and return what `forward_reference` returns. x must be channels_last."""
    y, pooled, places, statistics = forward_outputs(x)
    num_channels = x.shape[1]
    launch = plan("pool statistics", pooled)
    partials = torch.empty((2, launch.grid[0], num_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty(num_channels, dtype=torch.float32, device=x.device)
    tensors = x, pooled, places, shift, partials
    sizes = pooled.numel() // num_channels, num_channels, *x.shape[2:]
    _pool_norm_statistics_kernel[launch.grid](*tensors, *sizes, **launch.options)

    norm_tensors = NormTensors(shift, partials, *norm, statistics)
    outputs = y, statistics, x.new_empty(0)
    launch_apply(pooled, norm_tensors, None, None, outputs, activation, momentum, eps)
    return y, pooled, places, statistics
