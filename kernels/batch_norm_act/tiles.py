"""How the kernels of `batch_norm_act_forward.py` and `batch_norm_act_backward.py` cut activations into tiles and programs.

Shapes: in memory an activation is M = N·H·W rows of C values (channels_last). A program takes tiles of some rows by some channels,
every P-th of its column of tiles, where P is how many programs share a column.

| launch        | reads                                 | writes                                      |
|---------------|---------------------------------------|---------------------------------------------|
| statistics    | x                                     | two sums of each program                    |
| apply         | x, residual                           | y, and with a residual one bit of ReLU mask |
| gradient sums | dy, second dy, x, mask                | two sums of each program; dz if needed      |
| gradient      | dz (dy where no dz was written), x    | dx                                          |

A residual that is normalised too (`dual_batch_norm_act.py`) has statistics of its own, is read by the two gradient launches as well,
and has its gradient written by the last.

The second launch of each pair adds up what the first left, again in each program: that is cheaper than a launch between the two.
Nothing is added atomically, so results repeat bit for bit on one kind of GPU. The first launch of a pair walks from the end of x to its
start and the second from the start: each begins with what its predecessor left in the L2 cache.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl


class Tiling(NamedTuple):
    """How a kernel cuts M rows of C channels into tiles and programs."""

    channels: int  # of a tile; a power of two
    loads: int  # of 8 values, which are 16 bytes in half precision: of each thread, tensor and tile
    warps: int
    programs: int  # for each multiprocessor of the GPU
    stages: (
        int  # of the pipeline through shared memory; 1 is none: the loads of a tile are in flight together
    )


# By kernel and C; other C take the entry of the next larger C, and tiles no wider than C.
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
    # where the residual is normalised too: one more tensor to hold, so fewer loads of each for as many programs
    **{("dual gradient sums", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
    **{("dual gradient", num_channels): Tiling(64, 2, 8, 2, 1) for num_channels in (64, 128, 256, 512)},
}


@triton.jit
def locate(tile, channel, num_rows, num_channels, BLOCK_ROWS: tl.constexpr):
    """Return the offsets of a tile's elements, in two parts (one 64-bit number; 32-bit numbers), and which elements exist."""
    row = tl.arange(0, BLOCK_ROWS)
    start = tl.cast(tile, tl.int64) * BLOCK_ROWS
    exists = (row < num_rows - start)[:, None] & (channel < num_channels)[None, :]
    return start * num_channels, row[:, None] * num_channels + channel[None, :], exists


@triton.jit
def load(
    pointer,
    start,
    offset,
    exists,
    WHOLE_TILES: tl.constexpr,
    LAST_USE: tl.constexpr,
    DTYPE: tl.constexpr = tl.float32,
):
    eviction: tl.constexpr = "evict_first" if LAST_USE else ""
    if WHOLE_TILES:
        values = tl.load(pointer + start + offset, eviction_policy=eviction)
    else:
        values = tl.load(pointer + start + offset, mask=exists, other=0, eviction_policy=eviction)
    return values.to(DTYPE)


@triton.jit
def store(pointer, start, offset, values, exists, WHOLE_TILES: tl.constexpr):
    values = values.to(pointer.dtype.element_ty)
    if WHOLE_TILES:
        tl.store(pointer + start + offset, values)
    else:
        tl.store(pointer + start + offset, values, mask=exists)


@triton.jit
def fold(values, FOLD: tl.constexpr):
    """Return (rows / FOLD, channels): the sum over those rows of a tile that one thread holds, so that the sums take few registers."""
    return tl.sum(tl.reshape(values, (FOLD, values.shape[0] // FOLD, values.shape[1])), axis=0)


@triton.jit
def locate_mask(tile, num_rows, num_channels, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """As `locate`, of the mask's bytes, of which number g holds the channels from 8g."""
    byte = tl.program_id(1) * (BLOCK_CHANNELS // 8) + tl.arange(0, BLOCK_CHANNELS // 8)
    return locate(tile, byte, num_rows, tl.cdiv(num_channels, 8), BLOCK_ROWS)


@triton.jit
def add_partials(
    partials_ptr,
    num_partials,
    num_channels,
    channel,
    BLOCK_PARTIALS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Return two sums over the programs, of the first and of the second half of (2, P, C) partial sums."""
    in_channels = channel < num_channels
    sums = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    second_sums = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    for first in range(0, num_partials, BLOCK_PARTIALS):
        partial = first + tl.arange(0, BLOCK_PARTIALS)
        exists = (partial < num_partials)[:, None] & in_channels[None, :]
        pointers = partials_ptr + partial[:, None] * num_channels + channel[None, :]
        sums += tl.load(pointers, mask=exists, other=0.0)
        second_sums += tl.load(pointers + num_partials * num_channels, mask=exists, other=0.0)
    return tl.sum(sums, axis=0), tl.sum(second_sums, axis=0)


class Launch(NamedTuple):
    grid: tuple[int, int]
    options: dict[str, Any]


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    )  # in the interpreter


def plan(kernel: str, x: torch.Tensor) -> Launch:
    """Return grid and options of a launch of a kernel on x."""
    num_channels = x.shape[1]
    num_rows = x.numel() // num_channels
    tiling = TILINGS[kernel, min(max(triton.next_power_of_2(num_channels), 64), 512)]
    block_channels = max(8, min(tiling.channels, triton.next_power_of_2(num_channels)))
    block_rows = tiling.warps * tiling.loads * 256 // block_channels
    columns = triton.cdiv(num_channels, block_channels)
    programs = max(1, tiling.programs * _num_multiprocessors(x.device) // columns)
    options = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_CHANNELS": block_channels,
        "WHOLE_TILES": num_rows % block_rows == 0 and num_channels % block_channels == 0,
        "NUM_STAGES": tiling.stages,
        "num_warps": tiling.warps,
        "enable_fp_fusion": True,  # Triton 3.9 warns where its default is not asked for by name
    }
    if kernel in ("statistics", "gradient sums", "dual gradient sums"):
        options["FOLD"] = tiling.loads
    else:
        options["BLOCK_PARTIALS"] = (
            tiling.warps * 512 // block_channels
        )  # 4 loads of 16 bytes of each thread and of each of two sums
    return Launch((min(programs, triton.cdiv(num_rows, block_rows)), columns), options)
