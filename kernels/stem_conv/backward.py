"""Run the gradient by the weight: `kernels/stem_tiles.py` describes taps and tiles.

| launch          | reads                    | writes                                           |
|-----------------|--------------------------|--------------------------------------------------|
| weight gradient | images, dy               | of each program, the sum over its pixels: (O, K) |
| sum             | the sums of the programs | dweight                                          |

Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The weight gradient walks from
the end of dy to its start: the kernel that wrote dy walks the other way, and left the end of dy in the L2
cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.stem_tiles import BLOCK_PARTIALS, add_partials, block_taps, gather_taps, plan, store_partial
from kernels.tiles import FP_FUSION, load, locate


@triton.jit
def _stem_weight_gradient_kernel(  # noqa: PLR0913
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
    DTYPE: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    pixel = tl.arange(0, BLOCK_PIXELS)
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    gradient = tl.zeros((BLOCK_CHANNELS, BLOCK_TAPS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=NUM_STAGES):
        tile = num_tiles - 1 - step
        taps = gather_taps(
            images_ptr, tile, pixel, num_pixels, HEIGHT, WIDTH, CHANNELS, BLOCK_TAPS, DTYPE, OPERANDS
        )
        elements = locate(tile, channel, num_pixels, num_channels, BLOCK_PIXELS)
        dy = load(dy_ptr, elements, False, False, OPERANDS)
        gradient = tl.dot(tl.trans(dy), taps, gradient, input_precision="ieee")
    store_partial(partials_ptr, gradient, channel, num_channels, BLOCK_TAPS)


@triton.jit(do_not_specialize=["num_partials"])
def _stem_weight_sum_kernel(
    partials_ptr,  # (O, P, BLOCK_TAPS) float32
    dweight_ptr,  # (O, 9·C)
    num_partials,
    CHANNELS: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PARTIALS: tl.constexpr,
):
    """Add up the sums of one output channel in each program."""
    tap = tl.arange(0, BLOCK_TAPS)
    total = add_partials(partials_ptr, tl.program_id(0), num_partials, BLOCK_TAPS, BLOCK_PARTIALS)
    dweight = dweight_ptr + tl.program_id(0) * (9 * CHANNELS) + tap
    tl.store(dweight, total.to(dweight_ptr.dtype.element_ty), mask=tap < 9 * CHANNELS)


def launch_weight_gradient(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient by the weight, in its shape, dtype and strides. All must be channels_last."""
    num_channels = len(weight)
    grid, options = plan("weight gradient", images, num_channels, dy.dtype)
    taps = block_taps(images.shape[1])
    partials = torch.empty((num_channels, grid[0], taps), dtype=torch.float32, device=dy.device)
    num_pixels = dy.numel() // num_channels
    _stem_weight_gradient_kernel[grid](images, dy, partials, num_pixels, num_channels, **options)
    dweight = torch.empty_like(weight)
    _stem_weight_sum_kernel[(num_channels,)](
        partials, dweight, grid[0], images.shape[1], taps, BLOCK_PARTIALS, **FP_FUSION
    )
    return dweight
