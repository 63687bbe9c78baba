"""Run the backward pass; dz is the gradient by z, the value under the activation.

| launch        | reads                                 | writes                                        |
|---------------|---------------------------------------|-----------------------------------------------|
| gradient sums | dy, second dy, pooled                 | two sums of each program; dz if there are two |
| gradient      | dz (or dy, if there is one), pooled,  | dx, which is 0 but at the maxima              |
|               | places                                |                                               |

The first launch is that of `batch_norm_act`. Each row of a tile of the second one is a window of 2x2 pixels
of dx. Where the height or the width is odd, the last windows are cut and have no maximum.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.activations import pass_gradient
from kernels.batch_norm_act.backward import Inputs, launch_sums
from kernels.norm_gradient import (
    Gradients,
    NormConstants,
    dx_terms,
    input_gradient,
    load_deviation,
    normalise,
    store_sums,
)
from kernels.norm_tiles import add_partials, load_channels, plan
from kernels.pool_norm_act.forward import locate_places
from kernels.tiles import load, locate_pixels, store


@triton.jit
def _load_places(places_ptr, start, row, exists, num_channels, BLOCK_CHANNELS: tl.constexpr):
    """Return the place of the maximum of each element of a tile, 0 to 3, and 4 where there is no maximum."""
    BLOCK_ROWS: tl.constexpr = row.shape[0]
    offset, mask = locate_places(row, exists, num_channels, BLOCK_CHANNELS)
    bits = tl.load(places_ptr + start * tl.cdiv(num_channels, 4) + offset, mask=mask, other=0)
    places = bits.to(tl.int32)[:, :, None] >> 2 * tl.arange(0, 4)[None, None, :] & 3
    return tl.where(exists[:, None], tl.reshape(places, (BLOCK_ROWS, BLOCK_CHANNELS)), 4)


@triton.jit
def _gradient_of_windows(  # noqa: PLR0913
    tensors,  # dz (or dy), pooled and places
    window,
    exists,
    channels,  # channels of the tile, and their number in all
    coefficients,
    ACTIVATION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """Return the gradient by the maximum of each window of a tile, and its place: 4 if there is none."""
    dz_ptr, pooled_ptr, places_ptr = tensors
    channel, num_channels = channels
    terms, bias = coefficients
    first_image, image, y, x = window
    is_pooled = exists & (y < HEIGHT // 2) & (x < WIDTH // 2)
    start = first_image * ((HEIGHT // 2) * (WIDTH // 2))
    row = (image * (HEIGHT // 2) + y) * (WIDTH // 2) + x
    mask = is_pooled[:, None] & (channel < num_channels)[None, :]
    elements = start * num_channels, row[:, None] * num_channels + channel[None, :], mask
    dz = load(dz_ptr, elements, WHOLE_TILES, True)
    deviation = load_deviation(pooled_ptr, elements, terms[3], WHOLE_TILES, True)
    dz = pass_gradient(dz, normalise(deviation, terms[0], bias), ACTIVATION)
    places = _load_places(places_ptr, start, row, is_pooled, num_channels, channel.shape[0])
    return input_gradient(dz, deviation, terms), places


@triton.jit
def _store_windows(  # noqa: PLR0913
    dx_ptr,  # (N, HEIGHT, WIDTH, C)
    gradient,
    places,
    window,
    exists,
    channels,  # channels of the tile, and their number in all
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
):
    """Write the windows of a tile: the gradient at the place of each maximum, 0 elsewhere."""
    channel, num_channels = channels
    first_image, image, y, x = window
    start = first_image * (HEIGHT * WIDTH) * num_channels
    row = (image * HEIGHT + 2 * y) * WIDTH + 2 * x
    offset = row[:, None] * num_channels + channel[None, :]
    for place in tl.static_range(4):
        inside = exists & (2 * y + place // 2 < HEIGHT) & (2 * x + place % 2 < WIDTH)
        elements = start, offset, inside[:, None] & (channel < num_channels)[None, :]
        pixel = dx_ptr + (place // 2 * WIDTH + place % 2) * num_channels
        store(pixel, elements, tl.where(places == place, gradient, 0.0), WHOLE_TILES)


@triton.jit(do_not_specialize=["num_partials"])
def _pool_norm_gradient_kernel(  # noqa: PLR0913
    dz_ptr,  # (M, C); dy unless ACTIVATION is "none"
    pooled_ptr,  # (M, C)
    places_ptr,  # (M, ceil(C / 4)) uint8
    norm,  # NormConstants
    partials_ptr,  # (2, P, C) float32, of the gradient sums kernel
    gradients,  # by x, (N, HEIGHT, WIDTH, C), and by weight and bias, (C,) float32
    num_rows,
    num_channels,
    num_partials,
    ACTIVATION: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
    WHOLE_TILES: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    POOLED: tl.constexpr = (HEIGHT // 2) * (WIDTH // 2)
    WINDOWS: tl.constexpr = ((HEIGHT + 1) // 2) * ((WIDTH + 1) // 2)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    dbias, sums = add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS)
    dweight, terms = dx_terms(sums, dbias, norm.weight, norm.statistics, channel, num_rows, num_channels)
    bias = load_channels(norm.bias, channel, num_channels)
    store_sums(gradients[1], gradients[2], dweight, dbias, channel, num_channels)
    num_windows = tl.cast(num_rows // POOLED, tl.int64) * WINDOWS
    num_tiles = tl.cdiv(num_windows, BLOCK_ROWS).to(tl.int32)
    tensors, channels = (dz_ptr, pooled_ptr, places_ptr), (channel, num_channels)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), num_stages=NUM_STAGES):
        exists = tl.arange(0, BLOCK_ROWS) < num_windows - tl.cast(tile, tl.int64) * BLOCK_ROWS
        window = locate_pixels(tile, (HEIGHT + 1) // 2, (WIDTH + 1) // 2, BLOCK_ROWS)
        gradient, places = _gradient_of_windows(
            tensors, window, exists, channels, (terms, bias), ACTIVATION, HEIGHT, WIDTH, WHOLE_TILES
        )
        _store_windows(gradients[0], gradient, places, window, exists, channels, HEIGHT, WIDTH, WHOLE_TILES)


def backward_outputs(pooled: torch.Tensor, weight: torch.Tensor, height: int, width: int) -> Gradients:
    """Return tensors for the results of `launch_backward`."""
    shape = *pooled.shape[:2], height, width
    dx = torch.empty(shape, dtype=pooled.dtype, device=pooled.device, memory_format=torch.channels_last)
    return dx, torch.empty_like(weight), torch.empty_like(weight)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    height: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the backward kernels and return what `backward_reference` returns.

    Activations and gradients must be channels_last.
    """
    gradients = backward_outputs(pooled, weight, height, width)
    norm = NormConstants(weight, bias, statistics)
    dz = None if second_gradient is None else torch.empty_like(pooled)
    partials = launch_sums(Inputs(gradient, second_gradient, pooled, None), norm, dz, activation)

    num_images, num_channels = pooled.shape[:2]
    num_windows = num_images * ((height + 1) // 2) * ((width + 1) // 2)
    launch = plan("pool gradient", pooled, num_windows)
    launch.options["WHOLE_TILES"] &= height % 2 == 0 and width % 2 == 0
    if dz is not None:
        gradient, activation = dz, "none"
    tensors = gradient, pooled, places, norm, partials, gradients
    sizes = pooled.numel() // num_channels, num_channels, partials.shape[1]
    _pool_norm_gradient_kernel[launch.grid](*tensors, *sizes, activation, height, width, **launch.options)
    return gradients
