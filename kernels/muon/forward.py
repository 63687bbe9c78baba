"""Go through the weights before and after the iterations: one launch each for up to 32 matrices.

The first launch updates the momenta, writes the updates into one buffer, and adds up squares. The second
moves the weights.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from kernels.muon.products import launch_iterations, sum_of_partial_sums
from kernels.muon.reference import EPS, MuonSettings
from kernels.muon.tables import ELEMENT_FIELDS, TILE, layout_of
from kernels.tiles import FP_FUSION

_EPS = tl.constexpr(EPS)
_FIELDS = tl.constexpr(ELEMENT_FIELDS)
_TILE = tl.constexpr(TILE)


@triton.jit
def _select(pointers, number, COUNT: tl.constexpr):
    """Return the pointer of this number."""
    pointer = pointers[0]
    for other in tl.static_range(1, COUNT):
        if number == other:
            pointer = pointers[other]
    return pointer


@triton.jit
def _locate(tile, ALIGNMENT: tl.constexpr):
    """Return the tile's elements in a weight: offset of each from the weight's first, and which exist."""
    columns = tl.multiple_of(tl.load(tile + 2).to(tl.int32), ALIGNMENT)
    row = tl.multiple_of(tl.load(tile + 3).to(tl.int32), _TILE) + tl.arange(0, _TILE)
    column = tl.multiple_of(tl.load(tile + 4).to(tl.int32), _TILE) + tl.arange(0, _TILE)
    exists = (row < tl.load(tile + 1))[:, None] & (column < columns)[None, :]
    return row.to(tl.int64)[:, None] * columns + column[None, :], exists


@triton.jit
def _locate_in_buffer(tile):
    """Return the tile's place in the buffer: offset of each element, and whether it is transposed there."""
    start = tl.multiple_of(tl.load(tile + 5), _TILE)
    width = tl.multiple_of(tl.load(tile + 6).to(tl.int32), _TILE)
    transposed = tl.load(tile + 7) != 0
    row = tl.multiple_of(tl.load(tile + 3).to(tl.int32), _TILE)
    column = tl.multiple_of(tl.load(tile + 4).to(tl.int32), _TILE)
    if transposed:
        row, column = column, row
    index = tl.arange(0, _TILE)
    return start + ((row + index)[:, None] * width + (column + index)[None, :]), transposed


@triton.jit
def _lerp(start, end, weight):
    """Return start + weight * (end - start), by the formulas of `torch.lerp`."""
    difference = end - start
    return tl.where(weight < 0.5, start + weight * difference, end - difference * (1.0 - weight))


@triton.jit
def _muon_momentum_kernel(  # noqa: PLR0913
    weights,  # (rows, columns) float32 each, in the order of memory
    momenta,  # (rows, columns) float32 each, updated
    gradients,  # (rows, columns) float32 each
    found_inf_ptr,  # scalar float32, or None
    renormalise_ptr,  # scalar float32, or None
    x_ptr,  # (num_elements,), written
    sums_ptr,  # (num_tiles,) float32, written: sums of the squares of the updates
    weight_sums_ptr,  # (num_tiles,) float32: those of the weights, written if these are renormalised
    tiles_ptr,  # (T, 11) int64
    momentum,
    COUNT: tl.constexpr,
    NESTEROV: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * _FIELDS
    number = tl.load(tile).to(tl.int32)
    tile_number = tl.load(tile + 10)
    offset, exists = _locate(tile, ALIGNMENT)
    gradient = tl.load(_select(gradients, number, COUNT) + offset, mask=exists, other=0.0)
    mean_ptr = _select(momenta, number, COUNT) + offset
    mean = _lerp(tl.load(mean_ptr, mask=exists, other=0.0), gradient, 1.0 - momentum)
    proceeds = exists
    if found_inf_ptr is not None:
        proceeds = tl.where(tl.load(found_inf_ptr) > 0, False, exists)
    tl.store(mean_ptr, mean, mask=proceeds)

    update = _lerp(gradient, mean, momentum) if NESTEROV else mean
    update = update.to(x_ptr.dtype.element_ty)
    place, transposed = _locate_in_buffer(tile)
    if transposed:
        tl.store(x_ptr + place, tl.trans(update))
    else:
        tl.store(x_ptr + place, update)
    values = update.to(tl.float32)
    tl.store(sums_ptr + tile_number, tl.sum(values * values))
    if renormalise_ptr is not None:  # noqa: SIM102 (known when the kernel is compiled)
        if tl.load(renormalise_ptr) > 0:
            weight = tl.load(_select(weights, number, COUNT) + offset, mask=exists, other=0.0)
            tl.store(weight_sums_ptr + tile_number, tl.sum(weight * weight))


@triton.jit
def _muon_weight_kernel(  # noqa: PLR0913
    weights,  # (rows, columns) float32 each, in the order of memory, updated
    x_ptr,  # (num_elements,)
    weight_sums_ptr,  # (num_tiles,) float32
    lr_ptr,  # scalar float32
    found_inf_ptr,  # scalar float32, or None
    renormalise_ptr,  # scalar float32, or None
    tiles_ptr,  # (T, 11) int64
    weight_decay,
    COUNT: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * _FIELDS
    number = tl.load(tile).to(tl.int32)
    rows, columns = tl.load(tile + 1).to(tl.float32), tl.load(tile + 2).to(tl.float32)
    offset, exists = _locate(tile, ALIGNMENT)
    place, transposed = _locate_in_buffer(tile)
    update = tl.load(x_ptr + place).to(tl.float32)
    if transposed:
        update = tl.trans(update)
    update *= tl.sqrt(tl.maximum(rows / columns, 1.0))
    pointer = _select(weights, number, COUNT) + offset
    weight = tl.load(pointer, mask=exists, other=0.0)
    if renormalise_ptr is not None:  # noqa: SIM102 (known when the kernel is compiled)
        if tl.load(renormalise_ptr) > 0:
            squares = sum_of_partial_sums(weight_sums_ptr, tl.load(tile + 8), tl.load(tile + 9).to(tl.int32))
            weight *= tl.sqrt(rows) / tl.maximum(tl.sqrt(squares), _EPS)
    weight -= tl.load(lr_ptr) * (update + weight_decay * weight)
    if found_inf_ptr is not None:
        exists = tl.where(tl.load(found_inf_ptr) > 0, False, exists)
    tl.store(pointer, weight, mask=exists)


def launch_step(  # noqa: PLR0913
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lr: torch.Tensor,
    weight_decay: float,
    settings: MuonSettings,
    found_inf: torch.Tensor | None = None,
    renormalise: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Do what `muon_step` does, for weights without gaps in memory and with all three in the same order.

    Args are as of `muon_step`; `dtype`, bfloat16 or float32, is that of the iteration.
    """
    device = weights[0].device
    shapes = tuple((len(weight), weight.numel() // len(weight)) for weight in weights)
    layout = layout_of(shapes, device)
    x = torch.empty(layout.num_elements, dtype=dtype, device=device)
    sums, weight_sums = torch.empty(2, layout.num_tiles, dtype=torch.float32, device=device)
    switches = found_inf, renormalise
    options: dict[str, Any] = {"num_warps": 8, **FP_FUSION}
    for start, stop, tiles, alignment in layout.chunks:
        some = [tuple(tensors[start:stop]) for tensors in (weights, momenta, gradients)]
        sizes = {"COUNT": stop - start, "NESTEROV": settings.nesterov, "ALIGNMENT": alignment}
        results = x, sums, weight_sums
        _muon_momentum_kernel[(len(tiles),)](
            *some, *switches, *results, tiles, settings.momentum, **sizes, **options
        )
    x = launch_iterations(layout, x, sums, settings.steps, settings.coefficients)
    for start, stop, tiles, alignment in layout.chunks:
        sizes = {"COUNT": stop - start, "ALIGNMENT": alignment}
        read = x, weight_sums, lr
        _muon_weight_kernel[(len(tiles),)](
            tuple(weights[start:stop]), *read, *switches, tiles, weight_decay, **sizes, **options
        )
