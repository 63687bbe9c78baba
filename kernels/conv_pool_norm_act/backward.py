"""Run the backward pass: the gradient by the output of the convolution, three quarters zeros, is not written.

| launch          | reads                               | writes                                          |
|-----------------|-------------------------------------|-------------------------------------------------|
| gradient sums   | dy, second dy, pooled               | two sums of each program; dz if there are two   |
| gradient        | dz (or dy, if there is one), pooled | g, the gradient by the maximum of each window   |
| weight gradient | g, places, x                        | of each program, the sums over its windows      |
| sum             | the sums of the programs            | the gradient by the weight of the convolution   |

The first two launches are those of `batch_norm_act`. The third one multiplies tiles of windows. A window is
2x2 pixels of the output of the convolution; its taps read 4x4 pixels of x, its neighbours, from which 16
tiles are loaded. Four masks make four tiles of g, one for each place k of the maximum in the window. The
gradient of a tap is the sum, over k, of the product of tile k of g and the tile of the neighbour at k + tap:
36 products.

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The weight gradient walks from
the end of g to its start: the launch before it walks the other way, and left the end of g in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.batch_norm_act.backward import Inputs, launch_gradients
from kernels.conv_pool_norm_act.forward import Tiling, load_neighbours, plan_windows
from kernels.norm_gradient import Gradients, NormConstants, empty_gradients
from kernels.tiles import FP_FUSION, locate_pixels

TILING = Tiling(32, 64, 4, 2, 3)  # so many warps that the sums, 9 x 32 x channels, stay in registers
_BLOCK_VALUES, _BLOCK_PARTIALS = 64, 64  # of the sum: values of a program, and partial sums added at a time


@triton.jit
def _load_gradient(
    tensors,  # g and places
    start,
    exists,
    channel,
    NUM_CHANNELS: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Return g of a tile of windows, 0 where a window does not exist, and the places of the maxima."""
    BYTES: tl.constexpr = channel.shape[0] // 4  # four channels each
    g_ptr, places_ptr = tensors
    window = tl.arange(0, exists.shape[0])
    offset = window[:, None] * NUM_CHANNELS + channel[None, :]
    mask = exists[:, None] & (channel < NUM_CHANNELS)[None, :]
    g = tl.load(g_ptr + start * NUM_CHANNELS + offset, mask=mask, other=0.0)
    num_bytes = tl.cdiv(NUM_CHANNELS, 4)
    byte = tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    offset = window[:, None] * num_bytes + byte[None, :]
    mask = exists[:, None] & (byte < num_bytes)[None, :]
    bits = tl.load(places_ptr + start * num_bytes + offset, mask=mask, other=0).to(tl.int32)
    places = bits[:, :, None] >> 2 * tl.arange(0, 4)[None, None, :] & 3
    return g.to(OPERANDS), tl.reshape(places, (exists.shape[0], channel.shape[0]))


@triton.jit
def _add_products(sums, dy, tiles, ROW: tl.constexpr, COLUMN: tl.constexpr):
    """Return the sums of the nine taps with the products of dy, the gradient by one pixel of each window."""
    added = ()
    for tap in tl.static_range(9):
        neighbour = tiles[4 * (ROW + tap // 3) + COLUMN + tap % 3]
        added = added + (tl.dot(tl.trans(dy), neighbour, sums[tap]),)  # noqa: RUF005
    return added


@triton.jit
def _store_sums(
    partials_ptr,  # (P, O, 9, CHANNELS) float32
    sums,
    channel,
    NUM_CHANNELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write the sums of a program."""
    of_x = tl.arange(0, BLOCK_CHANNELS)
    start = (tl.program_id(0) * NUM_CHANNELS + channel) * (9 * CHANNELS)
    mask = (channel < NUM_CHANNELS)[:, None] & (of_x < CHANNELS)[None, :]
    for tap in tl.static_range(9):
        tl.store(partials_ptr + (start + tap * CHANNELS)[:, None] + of_x[None, :], sums[tap], mask=mask)


@triton.jit
def _pool_conv_weight_gradient_kernel(  # noqa: PLR0913
    g_ptr,  # (M, O)
    places_ptr,  # (M, ceil(O / 4)) uint8
    x_ptr,  # (N, HEIGHT, WIDTH, CHANNELS)
    partials_ptr,  # (P, O, 9, CHANNELS) float32
    num_windows,
    NUM_CHANNELS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_WINDOWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    sums = (tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32),) * 9
    tensors = g_ptr, places_ptr
    num_tiles = tl.cdiv(num_windows, BLOCK_WINDOWS)
    for step in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        start = tl.cast(tile, tl.int64) * BLOCK_WINDOWS
        exists = tl.arange(0, BLOCK_WINDOWS) < num_windows - start
        g, places = _load_gradient(tensors, start, exists, channel, NUM_CHANNELS, OPERANDS)
        window = locate_pixels(tile, HEIGHT // 2, WIDTH // 2, BLOCK_WINDOWS)
        tiles = load_neighbours(x_ptr, window, exists, HEIGHT, WIDTH, CHANNELS, BLOCK_IN, OPERANDS)
        for place in tl.static_range(4):
            dy = tl.where(places == place, g, 0.0)
            sums = _add_products(sums, dy, tiles, place // 2, place % 2)
    _store_sums(partials_ptr, sums, channel, NUM_CHANNELS, CHANNELS, BLOCK_IN)


@triton.jit(do_not_specialize=["num_partials"])
def _pool_conv_weight_sum_kernel(
    partials_ptr,  # (P, V) float32
    dweight_ptr,  # (V,) float32
    num_partials,
    num_values,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Add up some values of all partial sums."""
    value = tl.program_id(0) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)
    total = tl.zeros((BLOCK_PARTIALS, BLOCK_VALUES), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = first + tl.arange(0, BLOCK_PARTIALS)
        exists = (partial < num_partials)[:, None] & (value < num_values)[None, :]
        pointers = partials_ptr + partial[:, None] * num_values + value[None, :]
        total += tl.load(pointers, mask=exists, other=0.0)
    tl.store(dweight_ptr + value, tl.sum(total, axis=0), mask=value < num_values)


def launch_weight_gradient(g: torch.Tensor, places: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient by the weight of the convolution, (O, C, 3, 3) float32, channels_last.

    Args:
        g: (N, O, H // 2, W // 2) gradient by the maximum of each window, channels_last; O at most 128.
        places: of the maxima, as of `pool_norm_act`.
        x: (N, C, H, W) input of the convolution, of the dtype of g, channels_last.
    """
    num_channels, num_windows = g.shape[1], len(places)
    grid, options = plan_windows(x, num_windows, num_channels, TILING)
    dweight = weight_gradient_output(g, x)
    partials = dweight.new_empty((grid[0], dweight.numel()))
    _pool_conv_weight_gradient_kernel[grid](g, places, x, partials, num_windows, num_channels, **options)
    blocks = triton.cdiv(dweight.numel(), _BLOCK_VALUES)
    sizes = grid[0], dweight.numel(), _BLOCK_VALUES, _BLOCK_PARTIALS
    _pool_conv_weight_sum_kernel[(blocks,)](partials, dweight, *sizes, **FP_FUSION)
    return dweight


def weight_gradient_output(pooled: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a tensor for the result of `launch_weight_gradient`."""
    shape = pooled.shape[1], x.shape[1], 3, 3
    return torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    x: torch.Tensor,
) -> Gradients:
    """Run the backward kernels and return what `backward_reference` returns.

    Activations and gradients must be channels_last.
    """
    gradients = empty_gradients(pooled, weight)
    dz = None if second_gradient is None else torch.empty_like(pooled)
    inputs = Inputs(gradient, second_gradient, pooled, None)
    launch_gradients(inputs, NormConstants(weight, bias, statistics), dz, activation, gradients)
    return launch_weight_gradient(gradients[0], places, x), *gradients[1:]
