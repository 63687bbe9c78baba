"""Run the gradient by the bias: `kernels/whitening_stem/forward.py` describes taps and tiles.

The value under the GELU is computed again from the images, which have about a seventh of the bytes of dy.
Each program writes the sums over its pixels, and PyTorch adds up the programs. Nothing is added atomically,
so results repeat bit for bit on one kind of GPU. The launch walks from the end of dy to its start: the kernel
that wrote dy the other way left the end of dy in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.activations import pass_gradient
from kernels.tiles import load, locate
from kernels.whitening_stem.forward import convolve, load_parameters, plan


@triton.jit
def _whitening_stem_bias_gradient_kernel(  # noqa: PLR0913
    images_ptr,  # (B, HEIGHT, WIDTH, CHANNELS)
    weight_ptr,  # (O, 4·C)
    bias_ptr,  # (O,)
    dy_ptr,  # (M, ROW_CHANNELS)
    partials_ptr,  # (P, O) float32
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
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    parameters = load_parameters(
        weight_ptr, bias_ptr, channel, 4 * CHANNELS, BLOCK_TAPS, NUM_CHANNELS, DTYPE, OPERANDS
    )
    num_tiles = tl.cdiv(num_pixels, BLOCK_PIXELS)
    sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    for step in tl.range(program, num_tiles, num_programs, num_stages=1):
        tile = num_tiles - 1 - step
        z = convolve(
            images_ptr, tile, num_pixels, parameters, HEIGHT, WIDTH, CHANNELS, BLOCK_PIXELS, DTYPE, OPERANDS
        )
        elements = locate(tile, channel, num_pixels, ROW_CHANNELS, BLOCK_PIXELS)
        sums += pass_gradient(load(dy_ptr, elements, False, False), z, "gelu")
    pointers = partials_ptr + program * NUM_CHANNELS + channel
    tl.store(pointers, tl.sum(sums, axis=0), mask=channel < NUM_CHANNELS)


def launch_bias_gradient(
    dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return the gradient by the bias, of its dtype. All but the bias must be channels_last.

    The channels of dy beyond those of the bias count for nothing.
    """
    num_channels = len(weight)
    grid, options = plan("bias gradient", images, num_channels, dy)
    partials = torch.empty((grid[0], num_channels), dtype=torch.float32, device=dy.device)
    tensors = images, weight, bias, dy, partials
    _whitening_stem_bias_gradient_kernel[grid](*tensors, dy.numel() // dy.shape[1], **options)
    return partials.sum(0).to(bias.dtype)
