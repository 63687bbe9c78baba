"""Run the backward pass; dz is the gradient by z, the value under the ReLU that a window took.

| launch             | reads                       | writes                                        |
|--------------------|-----------------------------|-----------------------------------------------|
| gradient sums      | dy, second dy, pooled       | two sums of each program; dz if there are two |
| norm pool gradient | dz (or dy), places, x       | dx                                            |

The first launch is that of `batch_norm_act`. Windows overlap: in the second launch each row of a tile is a
square of 2x2 pixels of x, which take their gradients from the four windows around them.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.batch_norm_act.backward import Inputs, launch_sums
from kernels.norm_gradient import (
    Gradients,
    NormConstants,
    dx_terms,
    empty_gradients,
    input_gradient,
    load_deviation,
    store_sums,
)
from kernels.norm_tiles import add_partials, plan
from kernels.tiles import locate_pixels, store


@triton.jit
def _load_window(  # noqa: PLR0913
    tensors, square, down, right, exists, channels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """Return gradient and place of the window that begins a number of windows below and right of each square.

    The gradient is 0, and the place 9, where there is none.
    """
    dz_ptr, places_ptr = tensors
    channel, num_channels = channels
    first_image, image, y, x = square
    HIGH: tl.constexpr = (HEIGHT + 1) // 2
    WIDE: tl.constexpr = (WIDTH + 1) // 2
    start = first_image * (HIGH * WIDE) * num_channels
    inside = exists & (y + down < HIGH) & (x + right < WIDE)
    row = (image * HIGH + y + down) * WIDE + x + right
    offset = row[:, None] * num_channels + channel[None, :]
    mask = inside[:, None] & (channel < num_channels)[None, :]
    dz = tl.load(dz_ptr + start + offset, mask=mask, other=0).to(tl.float32)
    return dz, tl.load(places_ptr + start + offset, mask=mask, other=9).to(tl.int32)


@triton.jit
def _at(window, tap: tl.constexpr):
    """Return the gradients of the windows whose value came from this tap, 0 for the others."""
    return tl.where(window[1] == tap, window[0], 0.0)


@triton.jit
def _store_pixel(  # noqa: PLR0913
    tensors,  # x and dx, (N, HEIGHT, WIDTH, C)
    dz,
    square,
    down: tl.constexpr,
    right: tl.constexpr,
    exists,
    channels,
    terms,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """Write the gradient by one pixel of each square."""
    x_ptr, dx_ptr = tensors
    channel, num_channels = channels
    first_image, image, y, x = square
    start = first_image * (HEIGHT * WIDTH) * num_channels
    inside = exists & (2 * y + down < HEIGHT) & (2 * x + right < WIDTH)
    row = (image * HEIGHT + 2 * y + down) * WIDTH + 2 * x + right
    offset = row[:, None] * num_channels + channel[None, :]
    elements = start, offset, inside[:, None] & (channel < num_channels)[None, :]
    deviation = load_deviation(x_ptr, elements, terms[3], WHOLE_TILES, True)
    store(dx_ptr, elements, input_gradient(dz, deviation, terms), WHOLE_TILES)


@triton.jit
def _store_square(  # noqa: PLR0913
    windows,  # dz (or dy) and places
    pixels,  # x and dx
    square,
    exists,
    channels,
    terms,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """Write the gradients by the four pixels of each square.

    A window begins one pixel above and left of its square, and reaches one pixel into the next squares.
    """
    here = _load_window(windows, square, 0, 0, exists, channels, HEIGHT, WIDTH)
    right = _load_window(windows, square, 0, 1, exists, channels, HEIGHT, WIDTH)
    below = _load_window(windows, square, 1, 0, exists, channels, HEIGHT, WIDTH)
    beyond = _load_window(windows, square, 1, 1, exists, channels, HEIGHT, WIDTH)
    dz = _at(here, 4)
    _store_pixel(pixels, dz, square, 0, 0, exists, channels, terms, HEIGHT, WIDTH, WHOLE_TILES)
    dz = _at(here, 5) + _at(right, 3)
    _store_pixel(pixels, dz, square, 0, 1, exists, channels, terms, HEIGHT, WIDTH, WHOLE_TILES)
    dz = _at(here, 7) + _at(below, 1)
    _store_pixel(pixels, dz, square, 1, 0, exists, channels, terms, HEIGHT, WIDTH, WHOLE_TILES)
    dz = _at(here, 8) + _at(right, 6) + _at(below, 2) + _at(beyond, 0)
    _store_pixel(pixels, dz, square, 1, 1, exists, channels, terms, HEIGHT, WIDTH, WHOLE_TILES)


@triton.jit(do_not_specialize=["num_partials"])
def _pooled_norm_gradient_kernel(  # noqa: PLR0913
    dz_ptr,  # (W, C), W windows; dy if there is one
    x_ptr,  # (N, HEIGHT, WIDTH, C)
    places_ptr,  # (W, C) uint8
    norm,  # NormConstants
    partials_ptr,  # (2, P, C) float32, of the gradient sums kernel
    gradients,  # by x, and by weight and bias, (C,) float32
    num_rows,  # of x
    num_channels,
    num_partials,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    HIGH: tl.constexpr = (HEIGHT + 1) // 2
    WIDE: tl.constexpr = (WIDTH + 1) // 2
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    dbias, products = add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS)
    dweight, terms = dx_terms(products, dbias, norm.weight, norm.statistics, channel, num_rows, num_channels)
    store_sums(gradients[1], gradients[2], dweight, dbias, channel, num_channels)
    num_squares = num_rows // (HEIGHT * WIDTH) * (HIGH * WIDE)
    windows, pixels, channels = (dz_ptr, places_ptr), (x_ptr, gradients[0]), (channel, num_channels)
    num_tiles = tl.cdiv(num_squares, BLOCK_ROWS)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        exists = tl.arange(0, BLOCK_ROWS) < num_squares - tl.cast(tile, tl.int64) * BLOCK_ROWS
        square = locate_pixels(tile, HIGH, WIDE, BLOCK_ROWS)
        _store_square(windows, pixels, square, exists, channels, terms, HEIGHT, WIDTH, WHOLE_TILES)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
) -> Gradients:
    """Run the backward kernels and return what `backward_reference` returns.

    Activations and gradients must be channels_last.
    """
    gradients = empty_gradients(x, weight)
    norm = NormConstants(weight, bias, statistics)
    dz = None if second_gradient is None else torch.empty_like(pooled)
    partials = launch_sums(Inputs(gradient, second_gradient, pooled, None), norm, dz, "relu")
    num_channels, height, width = x.shape[1:]
    launch = plan("norm pool gradient", pooled)
    launch.options["WHOLE_TILES"] &= height % 2 == 0 and width % 2 == 0
    tensors = gradient if dz is None else dz, x, places, norm, partials, gradients
    sizes = x.numel() // num_channels, num_channels, partials.shape[1]
    _pooled_norm_gradient_kernel[launch.grid](*tensors, *sizes, height, width, **launch.options)
    return gradients
