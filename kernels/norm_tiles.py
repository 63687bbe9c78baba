"""Cut activations into tiles: shared by the kernels of all ops with a batch norm of activations.

| launch        | reads                                | writes                                       |
|---------------|--------------------------------------|----------------------------------------------|
| statistics    | x                                    | two sums of each program                     |
| apply         | x, residual                          | y; with a residual one bit of ReLU mask too  |
| gradient sums | dy, second dy, x, mask or residual   | two sums of each program; dz if it is needed |
| gradient      | dz (or dy, if no dz was written), x  | dx                                           |

A residual that is normalised too (`dual_batch_norm_act`) has its own statistics. Both gradient launches read
that residual as well, and the last launch writes its gradient.

The second launch of each pair adds up the sums of the first launch. Every program repeats this addition: that
is cheaper than one more launch. Nothing is added atomically, so results repeat bit for bit on one kind of
GPU. The first launch of a pair walks from the end of x to its start, the second from the start to the end: so
each launch begins with what the launch before it left in the L2 cache.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.tiles import FP_FUSION, Launch, locate, plan_grid


class Tiling(NamedTuple):
    """The cut of M rows of C channels into tiles and programs, for one kernel."""

    channels: int  # of a tile; a power of two
    # loads by each thread of each tensor in a tile; one load takes 8 values, 16 bytes in half precision
    loads: int
    warps: int
    programs: int  # for each multiprocessor of the GPU
    # of the pipeline through shared memory; 1: no pipeline, all loads of a tile are in flight together
    stages: int


# By kernel and C. Another C takes the entry of the next larger C, with tiles no wider than C.
TILINGS = {
    ("statistics", 64): Tiling(64, 4, 8, 2, 3),
    ("statistics", 128): Tiling(64, 4, 8, 2, 3),
    ("statistics", 256): Tiling(64, 4, 8, 2, 3),
    ("statistics", 512): Tiling(64, 4, 8, 1, 3),
    ("apply", 64): Tiling(64, 4, 16, 1, 1),
    ("apply", 128): Tiling(128, 4, 16, 1, 1),
    ("apply", 256): Tiling(64, 4, 8, 2, 1),
    ("apply", 512): Tiling(64, 4, 16, 1, 1),
    ("gradient sums", 64): Tiling(64, 2, 8, 2, 3),
    ("gradient sums", 128): Tiling(64, 2, 8, 2, 1),
    ("gradient sums", 256): Tiling(64, 4, 8, 2, 1),
    ("gradient sums", 512): Tiling(64, 2, 8, 2, 1),
    ("gradient", 64): Tiling(64, 4, 16, 1, 1),
    ("gradient", 128): Tiling(64, 4, 16, 1, 1),
    ("gradient", 256): Tiling(64, 4, 8, 2, 1),
    ("gradient", 512): Tiling(64, 4, 8, 2, 1),
    # The slope of a SiLU or GELU takes registers.
    **{
        ("smooth gradient sums", num_channels): Tiling(64, 2, 8, 2, stages)
        for num_channels, stages in ((64, 3), (128, 1), (256, 1), (512, 1))
    },
    # Four elements of x are read, or written, for each element of the pooled activation.
    **{("pool statistics", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
    ("pool gradient", 64): Tiling(64, 4, 4, 6, 1),
    ("pool gradient", 128): Tiling(64, 2, 8, 2, 1),
    ("pool gradient", 256): Tiling(64, 1, 4, 6, 1),
    ("pool gradient", 512): Tiling(64, 2, 8, 2, 1),
    # Nine elements of x are read for each element of y, and four of x and of dx written.
    **{("norm pool", num_channels): Tiling(64, 1, 4, 3, 1) for num_channels in (64, 128, 256, 512)},
    **{("norm pool gradient", num_channels): Tiling(64, 1, 4, 4, 1) for num_channels in (64, 128, 256, 512)},
    **{("pool inference", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
    **{("inference", num_channels): Tiling(64, 4, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
    # A residual that is normalised too is one more tensor in registers. So each tensor has fewer loads; the
    # number of programs is the same as without it.
    **{("dual gradient sums", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
    **{("dual gradient", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
}


@triton.jit
def fold(values, FOLD: tl.constexpr):
    """Return (rows / FOLD, channels): the sum over the rows of a tile that one thread holds.

    Such sums take few registers.
    """
    return tl.sum(tl.reshape(values, (FOLD, values.shape[0] // FOLD, values.shape[1])), axis=0)


@triton.jit
def add_deviations(sums, squares, values, shift, exists, FOLD: tl.constexpr, WHOLE_TILES: tl.constexpr):
    """Add one tile to two sums, as `fold` makes them, of deviations from the shift and of their squares."""
    deviation = values.to(tl.float32) - shift[None, :]
    if not WHOLE_TILES:
        deviation = tl.where(exists, deviation, 0.0)
    return sums + fold(deviation, FOLD), squares + fold(deviation * deviation, FOLD)


@triton.jit
def locate_mask(tile, num_rows, num_channels, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Return the mask bytes of a tile, as `locate` returns elements. Byte g holds the channels from 8g."""
    byte = tl.program_id(1) * (BLOCK_CHANNELS // 8) + tl.arange(0, BLOCK_CHANNELS // 8)
    return locate(tile, byte, num_rows, tl.cdiv(num_channels, 8), BLOCK_ROWS)


@triton.jit
def load_channels(pointer, channel, num_channels):
    """Return one value for each channel, 0 where a channel does not exist."""
    return tl.load(pointer + channel, mask=channel < num_channels, other=0.0)


@triton.jit
def store_partials(partials_ptr, sums, second_sums, channel, num_channels):
    """Write the two sums of a program to its place in (2, P, C) partial sums."""
    num_programs = tl.num_programs(0)
    pointers = partials_ptr + tl.program_id(0) * num_channels + channel
    tl.store(pointers, tl.sum(sums, axis=0), mask=channel < num_channels)
    tl.store(pointers + num_programs * num_channels, tl.sum(second_sums, axis=0), mask=channel < num_channels)


@triton.jit
def add_partials(partials_ptr, num_partials, num_channels, channel, BLOCK_PARTIALS: tl.constexpr):
    """Return two sums over the programs, of the first and of the second half of (2, P, C) partial sums."""
    in_channels = channel < num_channels
    sums = tl.zeros((BLOCK_PARTIALS, channel.shape[0]), tl.float32)
    second_sums = tl.zeros((BLOCK_PARTIALS, channel.shape[0]), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = first + tl.arange(0, BLOCK_PARTIALS)
        exists = (partial < num_partials)[:, None] & in_channels[None, :]
        pointers = partials_ptr + partial[:, None] * num_channels + channel[None, :]
        sums += tl.load(pointers, mask=exists, other=0.0)
        second_sums += tl.load(pointers + num_partials * num_channels, mask=exists, other=0.0)
    return tl.sum(sums, axis=0), tl.sum(second_sums, axis=0)


def plan(kernel: str, x: torch.Tensor, num_rows: int | None = None) -> Launch:
    """Return the grid and the options of a launch of a kernel on x, or on another number of rows."""
    num_channels = x.shape[1]
    num_rows = num_rows or x.numel() // num_channels
    tiling = TILINGS[kernel, min(max(triton.next_power_of_2(num_channels), 64), 512)]
    block_channels = max(8, min(tiling.channels, triton.next_power_of_2(num_channels)))
    block_rows = tiling.warps * tiling.loads * 256 // block_channels
    options = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_CHANNELS": block_channels,
        "WHOLE_TILES": num_rows % block_rows == 0 and num_channels % block_channels == 0,
        "NUM_STAGES": tiling.stages,
        "num_warps": tiling.warps,
        **FP_FUSION,
    }
    if kernel.endswith(("statistics", "gradient sums")):
        options["FOLD"] = tiling.loads
    elif not kernel.endswith("inference"):
        # For each of the two sums, each thread makes 4 loads of 16 bytes.
        options["BLOCK_PARTIALS"] = tiling.warps * 512 // block_channels
    num_tiles, num_columns = triton.cdiv(num_rows, block_rows), triton.cdiv(num_channels, block_channels)
    return Launch(plan_grid(num_tiles, num_columns, tiling.programs, x.device), options)
