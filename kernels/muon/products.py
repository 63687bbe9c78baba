"""Run the products of an iteration: three launches for all matrices of a class, whatever their shapes.

x ← a x + (b g + c g²) x with g = x xᵀ. Of g and of b g + c g², which are symmetric, the tiles on and below
the diagonal are computed and written twice.

The matrices enter as they are. The first iteration divides its results by the norm of the matrix, which saves
a pass over the matrices: g = x xᵀ / norm², and the new x is divided by the norm.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from kernels.muon.reference import EPS
from kernels.muon.tables import PRODUCT_FIELDS, Class, Layout
from kernels.tiles import FP_FUSION

_EPS = tl.constexpr(EPS)
_FIELDS = tl.constexpr(PRODUCT_FIELDS)
_BLOCK_SUMS = tl.constexpr(1024)  # partial sums that are added at a time
_DEPTH = 64  # columns of the first factor and rows of the second that are loaded at a time
_OPTIONS = {64: {"num_warps": 4, "num_stages": 4}, 128: {"num_warps": 8, "num_stages": 3}}


class _Buffers(NamedTuple):
    """The buffers of a layout: x and the gram matrices as it lays them out, sums of squares by tile."""

    x: torch.Tensor  # (num_elements,)
    other: torch.Tensor  # (num_elements,): the new x is written there, and the two then change roles
    gram: torch.Tensor  # (num_gram_elements,)
    polynomial: torch.Tensor  # (num_gram_elements,)
    sums: torch.Tensor  # (num_tiles,) float32


@triton.jit
def sum_of_partial_sums(sums_ptr, first, count):
    """Return the sum of COUNT float32 values from FIRST on."""
    index = tl.arange(0, _BLOCK_SUMS)
    total = tl.zeros((_BLOCK_SUMS,), tl.float32)
    for start in range(0, count, _BLOCK_SUMS):
        total += tl.load(sums_ptr + first + start + index, mask=index < count - start, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _tile(tiles_ptr, BLOCK: tl.constexpr):
    """Return the place of the matrix and of its gram matrix, the tile's corner, and the partial sums."""
    fields = tiles_ptr + tl.program_id(0) * _FIELDS
    start = tl.multiple_of(tl.load(fields), BLOCK)
    width = tl.multiple_of(tl.load(fields + 1).to(tl.int32), BLOCK)
    gram_start = tl.multiple_of(tl.load(fields + 2), BLOCK)
    height = tl.multiple_of(tl.load(fields + 3).to(tl.int32), BLOCK)
    row = tl.multiple_of(tl.load(fields + 4).to(tl.int32), BLOCK)
    column = tl.multiple_of(tl.load(fields + 5).to(tl.int32), BLOCK)
    return (
        start,
        width,
        gram_start,
        height,
        row,
        column,
        tl.load(fields + 6),
        tl.load(fields + 7).to(tl.int32),
    )


@triton.jit
def _inverse_norm(sums_ptr, first, count):
    return 1.0 / tl.maximum(tl.sqrt(sum_of_partial_sums(sums_ptr, first, count)), _EPS)


@triton.jit
def _store_symmetric(pointer, values, row, column, width, BLOCK: tl.constexpr):
    """Write a tile and its mirror image."""
    values = values.to(pointer.dtype.element_ty)
    index = tl.arange(0, BLOCK)
    tl.store(pointer + (row + index)[:, None] * width + (column + index)[None, :], values)
    if row != column:
        tl.store(pointer + (column + index)[:, None] * width + (row + index)[None, :], tl.trans(values))


@triton.jit
def _times_transpose(
    matrix, row, column, width, BLOCK: tl.constexpr, DEPTH: tl.constexpr, OPERANDS: tl.constexpr
):
    """Return the tile at (row, column) of the product of a matrix of this width and its transpose."""
    index, depth = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    left = matrix + ((row + index)[:, None] * width + depth[None, :])
    right = matrix + ((column + index)[None, :] * width + depth[:, None])
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(0, width, DEPTH):
        factors = tl.load(left).to(OPERANDS), tl.load(right).to(OPERANDS)
        total = tl.dot(factors[0], factors[1], total, input_precision="ieee")
        left += DEPTH
        right += DEPTH
    return total


@triton.jit
def _muon_gram_kernel(  # noqa: PLR0913
    x_ptr,  # (num_elements,)
    sums_ptr,  # (num_tiles,) float32
    gram_ptr,  # (num_gram_elements,), written
    tiles_ptr,  # (T, 8) int64
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Write a tile of x xᵀ."""
    start, width, gram_start, height, row, column, first, count = _tile(tiles_ptr, BLOCK)
    total = _times_transpose(x_ptr + start, row, column, width, BLOCK, DEPTH, OPERANDS)
    if NORMALISE:
        inverse = _inverse_norm(sums_ptr, first, count)
        total = total * inverse * inverse
    _store_symmetric(gram_ptr + gram_start, total, row, column, height, BLOCK)


@triton.jit
def _muon_polynomial_kernel(  # noqa: PLR0913
    gram_ptr,  # (num_gram_elements,)
    polynomial_ptr,  # (num_gram_elements,), written
    tiles_ptr,  # (T, 8) int64
    b,
    c,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Write a tile of b g + c g²."""
    _, _, gram_start, height, row, column, _, _ = _tile(tiles_ptr, BLOCK)
    index = tl.arange(0, BLOCK)
    gram = gram_ptr + gram_start
    own = tl.load(gram + ((row + index)[:, None] * height + (column + index)[None, :])).to(tl.float32)
    total = _times_transpose(gram, row, column, height, BLOCK, DEPTH, OPERANDS)  # g is symmetric
    _store_symmetric(polynomial_ptr + gram_start, b * own + c * total, row, column, height, BLOCK)


@triton.jit
def _muon_apply_kernel(  # noqa: PLR0913
    x_ptr,  # (num_elements,)
    sums_ptr,  # (num_tiles,) float32
    polynomial_ptr,  # (num_gram_elements,)
    out_ptr,  # (num_elements,), written
    tiles_ptr,  # (T, 8) int64
    a,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    OPERANDS: tl.constexpr,
):
    """Write a tile of a x + p x."""
    start, width, gram_start, height, row, column, first, count = _tile(tiles_ptr, BLOCK)
    index, depth = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    x = x_ptr + start
    left = polynomial_ptr + gram_start + ((row + index)[:, None] * height + depth[None, :])
    right = x + (depth[:, None] * width + (column + index)[None, :])
    own = (row + index)[:, None] * width + (column + index)[None, :]
    total = a * tl.load(x + own).to(tl.float32)
    for _ in range(0, height, DEPTH):
        factors = tl.load(left).to(OPERANDS), tl.load(right).to(OPERANDS)
        total = tl.dot(factors[0], factors[1], total, input_precision="ieee")
        left += DEPTH
        right += DEPTH * width
    if NORMALISE:
        total *= _inverse_norm(sums_ptr, first, count)
    tl.store(out_ptr + start + own, total.to(out_ptr.dtype.element_ty))


def launch_iterations(
    layout: Layout, x: torch.Tensor, sums: torch.Tensor, steps: int, coefficients: tuple[float, float, float]
) -> torch.Tensor:
    """Return the orthogonalised matrices, laid out as they were.

    Args:
        layout: of the matrices.
        x: (num_elements,) bfloat16 or float32, not normalised; overwritten.
        sums: (num_tiles,) float32, sums of the squares of the elements of each tile.
        steps: number of iterations, at least 1.
        coefficients: a, b and c of an iteration.
    """
    buffers = _Buffers(x, torch.empty_like(x), *x.new_empty(2, layout.num_gram_elements), sums)
    *small, large = layout.classes
    if small and x.is_cuda:  # the small matrices alone would leave most of the GPU idle
        current, side = torch.cuda.current_stream(x.device), _side_stream(x.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for some in small:
                _iterate(some, buffers, steps, coefficients)
        _iterate(large, buffers, steps, coefficients)
        current.wait_stream(side)
    else:
        for some in layout.classes:
            _iterate(some, buffers, steps, coefficients)
    return buffers.x if steps % 2 == 0 else buffers.other


@lru_cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _iterate(some: Class, buffers: _Buffers, steps: int, coefficients: tuple[float, float, float]) -> None:
    """Take all iterations of the matrices of a class."""
    a, b, c = coefficients
    x, out, gram, polynomial, sums = buffers
    # Triton's interpreter multiplies no bfloat16
    operands = tl.bfloat16 if x.dtype is torch.bfloat16 and x.is_cuda else tl.float32
    sizes = {"BLOCK": some.block, "DEPTH": _DEPTH, "OPERANDS": operands}
    options: dict[str, Any] = {**sizes, **_OPTIONS[some.block], **FP_FUSION}
    below, whole = (len(some.gram_tiles),), (len(some.tiles),)
    for step in range(steps):
        first = step == 0
        _muon_gram_kernel[below](x, sums, gram, some.gram_tiles, NORMALISE=first, **options)
        _muon_polynomial_kernel[below](gram, polynomial, some.gram_tiles, b, c, **options)
        _muon_apply_kernel[whole](x, sums, polynomial, out, some.tiles, a, NORMALISE=first, **options)
        x, out = out, x
