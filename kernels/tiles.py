"""Cut tensors into tiles and programs: the functions that the kernels of several ops share.

In memory (channels_last) an activation has M rows of C values, one row for each pixel. A tile has some rows
and some channels. Tiles of the same channels form a column. P programs share a column: each takes every P-th
tile.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

FP_FUSION = {
    "enable_fp_fusion": True
}  # this is the default, but Triton 3.9 warns if a launch does not name it
_MULTIPROCESSORS_OF_INTERPRETER = 2  # so few that a program takes several tiles of a small tensor


class Launch(NamedTuple):
    """The grid and the keyword arguments of a kernel launch."""

    grid: tuple[int, int]
    options: dict[str, Any]


@triton.jit
def locate(tile, channel, num_rows, num_channels, BLOCK_ROWS: tl.constexpr):
    """Return the elements of a tile: the offset of its first row, offsets from there, and a mask.

    The first offset has 64 bits, the others have 32. The mask is true for elements that exist.
    """
    row = tl.arange(0, BLOCK_ROWS)
    start = tl.cast(tile, tl.int64) * BLOCK_ROWS
    exists = (row < num_rows - start)[:, None] & (channel < num_channels)[None, :]
    return start * num_channels, row[:, None] * num_channels + channel[None, :], exists


@triton.jit
def locate_pixels(tile, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the places of the rows of a tile, if each is a pixel of images of HEIGHT by WIDTH.

    They are the number of the first row's image, which has 64 bits, and for each row the number of its image,
    counted from there, its y and its x, which have 32 bits.
    """
    start = tl.cast(tile, tl.int64) * BLOCK_ROWS
    first_image = start // (HEIGHT * WIDTH)
    pixel = (start - first_image * (HEIGHT * WIDTH)).to(tl.int32) + tl.arange(0, BLOCK_ROWS)
    pixel = pixel.to(tl.uint32)  # unsigned divisions are shorter
    image = pixel // (HEIGHT * WIDTH)
    pixel -= image * (HEIGHT * WIDTH)
    y = pixel // WIDTH
    return first_image, image.to(tl.int32), y.to(tl.int32), (pixel - y * WIDTH).to(tl.int32)


@triton.jit
def load(
    pointer, elements, WHOLE_TILES: tl.constexpr, LAST_USE: tl.constexpr, DTYPE: tl.constexpr = tl.float32
):
    """Return the values of the elements that `locate` returned, 0 where an element does not exist."""
    start, offset, exists = elements
    eviction: tl.constexpr = "evict_first" if LAST_USE else ""
    if WHOLE_TILES:
        values = tl.load(pointer + start + offset, eviction_policy=eviction)
    else:
        values = tl.load(pointer + start + offset, mask=exists, other=0, eviction_policy=eviction)
    return values.to(DTYPE)


@triton.jit
def store(pointer, elements, values, WHOLE_TILES: tl.constexpr):
    """Cast the values to the dtype of the pointer, and write them to the elements that `locate` returned."""
    start, offset, exists = elements
    values = values.to(pointer.dtype.element_ty)
    if WHOLE_TILES:
        tl.store(pointer + start + offset, values)
    else:
        tl.store(pointer + start + offset, values, mask=exists)


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of a GPU; for Triton's interpreter, on the CPU, a small number."""
    if device.type != "cuda":
        return _MULTIPROCESSORS_OF_INTERPRETER
    return torch.cuda.get_device_properties(device).multi_processor_count


def plan_grid(num_tiles: int, num_columns: int, programs: int, device: torch.device) -> tuple[int, int]:
    """Return how many programs share a column, and the number of columns.

    Args:
        num_tiles: tiles in a column, which is also the largest useful number of programs.
        num_columns: columns of tiles.
        programs: programs for each multiprocessor of the GPU, in all columns together.
        device: the device that runs the kernel.
    """
    programs = max(1, programs * num_multiprocessors(device) // num_columns)
    return min(programs, num_tiles), num_columns
