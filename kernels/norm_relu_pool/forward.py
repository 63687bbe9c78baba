"""Run the forward pass: the statistics kernel of `batch_norm_act`, then one that normalises and pools.

| launch     | reads | writes                                       |
|------------|-------|----------------------------------------------|
| statistics | x     | two sums of each program                     |
| norm pool  | x     | y, the pooled x, and the places of its values |

Norm and ReLU are monotonic, so that the largest y of a window is that of its largest x, or, if the weight is
negative, of its smallest. `kernels/norm_tiles.py` describes the tiles, which in the second launch are those
of y: each row is a window.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.activations import activate
from kernels.arguments import Norm
from kernels.batch_norm_act.forward import finish_statistics, launch_statistics
from kernels.norm_tiles import plan
from kernels.tiles import locate, locate_pixels, store

# y and the pooled x, (N, C, H', W'); the places and the statistics
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@triton.jit
def _extremes(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, C)
    tile,
    channel,
    sizes,  # number of windows and of channels
    sign,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Return the x of each window of a tile with the largest sign * x, and its place in the window, 0 to 8.

    As in PyTorch it is the first of equals, or the last NaN.
    """
    num_rows, num_channels = sizes
    first_image, image, y, x = locate_pixels(tile, (HEIGHT + 1) // 2, (WIDTH + 1) // 2, BLOCK_ROWS)
    first = x_ptr + first_image * (HEIGHT * WIDTH) * num_channels
    exists = tl.arange(0, BLOCK_ROWS) < num_rows - tl.cast(tile, tl.int64) * BLOCK_ROWS
    best = tl.zeros((BLOCK_ROWS, channel.shape[0]), tl.float32)
    best_key = tl.full((BLOCK_ROWS, channel.shape[0]), float("-inf"), tl.float32)
    place = tl.zeros((BLOCK_ROWS, channel.shape[0]), tl.int32)
    for tap in tl.static_range(9):
        row, column = 2 * y + tap // 3 - 1, 2 * x + tap % 3 - 1
        inside = exists & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
        mask = inside[:, None] & (channel < num_channels)[None, :]
        pixel = (image * HEIGHT + row) * WIDTH + column
        offset = pixel[:, None] * num_channels + channel[None, :]
        value = tl.load(first + offset, mask=mask, other=0).to(tl.float32)
        key = value * sign[None, :]
        takes = mask & ((key > best_key) | (key != key))
        best, place = tl.where(takes, value, best), tl.where(takes, tap, place)
        best_key = tl.where(takes, key, best_key)
    return best, place


@triton.jit(do_not_specialize=["num_partials"])
def _pooled_norm_apply_kernel(  # noqa: PLR0913
    x_ptr,  # (N, HEIGHT, WIDTH, C)
    norm,  # NormTensors
    y_ptr,  # (W, C), W windows
    pooled_ptr,  # (W, C)
    places_ptr,  # (W, C) uint8: 9 where the ReLU lets nothing pass
    num_rows,  # of x
    num_channels,
    num_partials,
    momentum,
    eps,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    WINDOWS: tl.constexpr = ((HEIGHT + 1) // 2) * ((WIDTH + 1) // 2)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    sizes = num_rows, num_channels, num_partials
    mean, scale, bias = finish_statistics(channel, norm, sizes, momentum, eps, BLOCK_PARTIALS)
    sign = tl.where(scale > 0.0, 1.0, tl.where(scale < 0.0, -1.0, 0.0))
    num_windows = num_rows // (HEIGHT * WIDTH) * WINDOWS
    num_tiles = tl.cdiv(num_windows, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        windows = num_windows, num_channels
        pooled, place = _extremes(x_ptr, tile, channel, windows, sign, HEIGHT, WIDTH, BLOCK_ROWS)
        z = tl.fma(pooled - mean[None, :], scale[None, :], bias[None, :])
        passes = ~(z <= 0.0)  # true for NaN
        elements = locate(tile, channel, num_windows, num_channels, BLOCK_ROWS)
        store(y_ptr, elements, activate(z, "relu"), WHOLE_TILES)
        store(pooled_ptr, elements, pooled, WHOLE_TILES)
        store(places_ptr, elements, tl.where(passes, place, 9), WHOLE_TILES)


def forward_outputs(x: torch.Tensor) -> Outputs:
    """Return tensors for the results of `launch_forward`."""
    num_images, num_channels, height, width = x.shape
    shape = num_images, num_channels, (height + 1) // 2, (width + 1) // 2
    y, pooled, places = (
        torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        for dtype in (x.dtype, x.dtype, torch.uint8)
    )
    return y, pooled, places, x.new_empty((2, num_channels), dtype=torch.float32)


def launch_forward(x: torch.Tensor, norm: Norm, momentum: float, eps: float) -> Outputs:
    """Run the forward kernels and return what `forward_reference` returns. x must be channels_last."""
    y, pooled, places, statistics = forward_outputs(x)
    tensors = launch_statistics(x, norm, statistics)
    num_channels = x.shape[1]
    launch = plan("norm pool", pooled)
    sizes = x.numel() // num_channels, num_channels, tensors.partials.shape[1]
    outputs = y, pooled, places
    _pooled_norm_apply_kernel[launch.grid](
        x, tensors, *outputs, *sizes, momentum, eps, *x.shape[2:], **launch.options
    )
    return y, pooled, places, statistics
