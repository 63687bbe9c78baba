"""Run the forward pass: the output of the convolution is not written.

| launch     | reads     | writes                                                       |
|------------|-----------|--------------------------------------------------------------|
| statistics | x, weight | pooled convolution, places, two sums of each program         |
| apply      | pooled    | y                                                            |

The second launch is that of `batch_norm_act`. The first one multiplies tiles of windows. A window is 2x2
pixels of the output of the convolution; its taps read 4x4 pixels of x, its neighbours, from which 16 tiles
are loaded. A pixel is the sum of nine products, of the weight of a tap and the tile of the neighbour under
it: 36 products. Each pixel is rounded, as the output of a convolution, before the maximum is taken.

The weights are the first operand of all products. They stay in registers, 72 of a thread: a product of two
operands from shared memory reads so much that it is slower.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.arguments import Norm
from kernels.batch_norm_act.forward import NormTensors, launch_apply
from kernels.norm_tiles import add_deviations, store_partials
from kernels.pool_norm_act.forward import Outputs, forward_outputs, maximum, store_places
from kernels.tiles import FP_FUSION, Launch, locate, locate_pixels, plan_grid, store


class Tiling(NamedTuple):
    """The cut of the windows into tiles and programs."""

    windows: int  # of a tile; a power of two, at least 16
    channels: int  # output channels of a tile; 64 or 128
    warps: int
    programs: int  # for each multiprocessor of the GPU
    stages: int  # of the pipeline through shared memory that loads the tiles; 1: no pipeline


MAX_CHANNELS = 128  # of the output; more were never timed
# By output channels: up to 64, and more.
TILINGS = {64: Tiling(32, 64, 4, 2, 3), MAX_CHANNELS: Tiling(64, 128, 8, 1, 3)}
BLOCK_IN = 32  # channels of x; a tile has all of them
_FOLD = 8  # rows of a tile in the sums: each thread holds two values of a row of 8
_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def load_neighbours(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, CHANNELS)
    window,  # the places of the windows, as of `locate_pixels`
    exists,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return a tile for each of the 4x4 neighbours, (windows, BLOCK_CHANNELS), 0 beyond the border."""
    first_image, image, y, x = window
    channel = tl.arange(0, BLOCK_CHANNELS)
    start = x_ptr + first_image * (HEIGHT * WIDTH * CHANNELS)
    corner = ((image * HEIGHT + 2 * y) * WIDTH + 2 * x) * CHANNELS
    offset = corner[:, None] + channel[None, :]
    tiles = ()
    for row in tl.static_range(-1, 3):
        inside = exists
        if row == -1:
            inside = exists & (y > 0)
        elif row == 2:
            inside = exists & (2 * y + 2 < HEIGHT)
        for column in tl.static_range(-1, 3):
            in_image = inside
            if column == -1:
                in_image = inside & (x > 0)
            elif column == 2:
                in_image = inside & (2 * x + 2 < WIDTH)
            mask = in_image[:, None] & (channel < CHANNELS)[None, :]
            pointers = start + (offset + (row * WIDTH + column) * CHANNELS)
            tiles = tiles + (tl.load(pointers, mask=mask, other=0.0).to(OPERANDS),)  # noqa: RUF005
    return tiles


@triton.jit
def _load_weights(
    weight_ptr,  # (O, 9, CHANNELS)
    channel,
    NUM_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return the weight of each of the nine taps, (output channels, BLOCK_CHANNELS), rounded to DTYPE."""
    of_x = tl.arange(0, BLOCK_CHANNELS)
    offset = (channel * (9 * CHANNELS))[:, None] + of_x[None, :]
    mask = (channel < NUM_CHANNELS)[:, None] & (of_x < CHANNELS)[None, :]
    weights = ()
    for tap in tl.static_range(9):
        weight = tl.load(weight_ptr + tap * CHANNELS + offset, mask=mask, other=0.0)
        weights = weights + (weight.to(DTYPE).to(OPERANDS),)  # noqa: RUF005
    return weights


@triton.jit
def _pool(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, CHANNELS)
    weights,  # of each tap, (output channels, input channels)
    window,  # the places of the windows, as of `locate_pixels`
    exists,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return the maxima of the windows of a tile, (windows, output channels), and their places."""
    BLOCK_IN: tl.constexpr = weights[0].shape[1]
    tiles = load_neighbours(x_ptr, window, exists, HEIGHT, WIDTH, CHANNELS, BLOCK_IN, OPERANDS)
    pixels = ()
    for place in tl.static_range(4):
        total = tl.zeros((weights[0].shape[0], tiles[0].shape[0]), tl.float32)
        for tap in tl.static_range(9):
            neighbour = tiles[4 * (place // 2 + tap // 3) + place % 2 + tap % 3]
            total = tl.dot(weights[tap], tl.trans(neighbour), total)
        pixels = pixels + (total.to(DTYPE).to(OPERANDS),)  # noqa: RUF005
    values, place = maximum(pixels)
    return tl.trans(values), tl.trans(place)


@triton.jit
def _sample_mean(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, CHANNELS)
    weights,
    num_windows,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_WINDOWS: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return the mean of BLOCK_WINDOWS maxima of each output channel, from windows all over x.

    These products are the first to use the weights, and of the same shape as all others. So the weights stay
    in registers: otherwise each product loads its own from shared memory again.
    """
    POOLED: tl.constexpr = (HEIGHT // 2) * (WIDTH // 2)
    window = tl.arange(0, BLOCK_WINDOWS).to(tl.int64) * num_windows // BLOCK_WINDOWS
    image = window // POOLED
    place = (window - image * POOLED).to(tl.int32)
    y = place // (WIDTH // 2)
    window = 0, image, y, place - y * (WIDTH // 2)
    values, _ = _pool(x_ptr, weights, window, image >= 0, HEIGHT, WIDTH, CHANNELS, DTYPE, OPERANDS)
    return tl.sum(values.to(tl.float32), axis=0) / BLOCK_WINDOWS


@triton.jit
def _conv_pool_statistics_kernel(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, CHANNELS)
    weight_ptr,  # (O, 9, CHANNELS)
    pooled_ptr,  # (M, O)
    places_ptr,  # (M, ceil(O / 4)) uint8
    shift_ptr,  # (O,) float32
    partials_ptr,  # (2, P, O) float32: sum of pooled - shift, sum of squares of pooled - shift
    num_windows,
    NUM_CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_WINDOWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    FOLD: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    weights = _load_weights(weight_ptr, channel, NUM_CHANNELS, CHANNELS, BLOCK_IN, DTYPE, OPERANDS)
    shift = _sample_mean(x_ptr, weights, num_windows, HEIGHT, WIDTH, CHANNELS, BLOCK_WINDOWS, DTYPE, OPERANDS)
    sums = tl.zeros((BLOCK_WINDOWS // FOLD, BLOCK_OUT), tl.float32)
    squares = tl.zeros((BLOCK_WINDOWS // FOLD, BLOCK_OUT), tl.float32)
    num_tiles = tl.cdiv(num_windows, BLOCK_WINDOWS)
    for step in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        exists = tl.arange(0, BLOCK_WINDOWS) < num_windows - tl.cast(tile, tl.int64) * BLOCK_WINDOWS
        window = locate_pixels(tile, HEIGHT // 2, WIDTH // 2, BLOCK_WINDOWS)
        values, place = _pool(x_ptr, weights, window, exists, HEIGHT, WIDTH, CHANNELS, DTYPE, OPERANDS)
        elements = locate(tile, channel, num_windows, NUM_CHANNELS, BLOCK_WINDOWS)
        store(pooled_ptr, elements, values, WHOLE_TILES)
        store_places(places_ptr, place, tile, num_windows, NUM_CHANNELS, WHOLE_TILES)
        sums, squares = add_deviations(sums, squares, values, shift, elements[2], FOLD, WHOLE_TILES)
    store_partials(partials_ptr, sums, squares, channel, NUM_CHANNELS)
    if tl.program_id(0) == 0:
        tl.store(shift_ptr + channel, shift, mask=channel < NUM_CHANNELS)


def _operands_of(x: torch.Tensor) -> tl.dtype:
    """Return the dtype of the operands of the products."""
    # Triton's interpreter multiplies and compares the bits of bfloat16 as if they were integers.
    interpreted_bfloat16 = x.dtype is torch.bfloat16 and x.device.type != "cuda"
    return tl.float32 if interpreted_bfloat16 else _DTYPES[x.dtype]


def plan_windows(x: torch.Tensor, num_windows: int, num_channels: int, tiling: Tiling) -> Launch:
    """Return the grid and the options that the kernels on windows share, of x and O = num_channels."""
    options = {
        "HEIGHT": x.shape[2],
        "WIDTH": x.shape[3],
        "CHANNELS": x.shape[1],
        "BLOCK_WINDOWS": tiling.windows,
        "BLOCK_IN": BLOCK_IN,
        "BLOCK_OUT": tiling.channels,
        "NUM_STAGES": tiling.stages,
        "OPERANDS": _operands_of(x),
        "num_warps": tiling.warps,
        **FP_FUSION,
    }
    num_tiles = triton.cdiv(num_windows, tiling.windows)
    num_columns = triton.cdiv(num_channels, tiling.channels)
    return Launch(plan_grid(num_tiles, num_columns, tiling.programs, x.device), options)


def _plan(x: torch.Tensor, num_windows: int, num_channels: int) -> Launch:
    """Return the grid and the options of the statistics of x and O = num_channels output channels."""
    tiling = TILINGS[64 if num_channels <= 64 else MAX_CHANNELS]
    grid, options = plan_windows(x, num_windows, num_channels, tiling)
    further = {
        "FOLD": tiling.windows // _FOLD,
        "WHOLE_TILES": num_windows % tiling.windows == 0 and num_channels % tiling.channels == 0,
        "DTYPE": _DTYPES[x.dtype],
    }
    return Launch(grid, options | further)


def launch_forward(
    x: torch.Tensor, filters: torch.Tensor, norm: Norm, activation: str, momentum: float, eps: float
) -> Outputs:
    """Run the forward kernels and return what `forward_reference` returns.

    Args:
        x: (N, C, H, W), C at most 32, channels_last.
        filters: (O, C, 3, 3), O at most 128, channels_last; the kernel rounds it to the dtype of x.
        norm: (O,) contiguous float32 each.
        activation: see `kernels/activations.py`.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
    """
    y, pooled, places, statistics = forward_outputs(x, len(filters))
    num_windows, num_channels = len(places), len(filters)
    grid, options = _plan(x, num_windows, num_channels)
    partials = torch.empty((2, grid[0], num_channels), dtype=torch.float32, device=x.device)
    shift = torch.empty(num_channels, dtype=torch.float32, device=x.device)
    tensors = x, filters, pooled, places, shift, partials
    _conv_pool_statistics_kernel[grid](*tensors, num_windows, num_channels, **options)

    norm_tensors = NormTensors(shift, partials, *norm, statistics)
    launch_apply(pooled, norm_tensors, None, None, (y, statistics, x.new_empty(0)), activation, momentum, eps)
    return y, pooled, places, statistics
