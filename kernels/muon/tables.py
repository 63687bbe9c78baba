"""Lay the matrices of a step out in one buffer, and list the tiles of the buffer, one for each program.

In the buffer a matrix has at least as many columns as rows: a matrix with more rows is stored transposed.
Zeros fill its rows and its columns up to a multiple of its block, so that no program needs a mask. All
matrices of one block form a class, because a launch has tiles of one size.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

TILE = 64  # rows and columns of a tile of the kernels that go through the weights; it divides each block
_MATRICES = 32  # of a launch that goes through the weights: each is an argument
# Rows and columns of a tile of a product, and up to how many rows of a matrix: large tiles read less, but too
# few of them leave the GPU idle.
BLOCKS = ((64, 256), (128, None))
# int64 values that describe a tile
ELEMENT_FIELDS, PRODUCT_FIELDS = 11, 8


class Chunk(NamedTuple):
    """Matrices that one launch goes through.

    Attributes:
        start, stop: the numbers of the matrices.
        tiles: (T, 11) int64: number of the matrix in the chunk, its rows and columns; first row and column of
            the tile; start of the matrix in the buffer, its row's length there, 1 if it is transposed; first
            tile of the matrix and number of its tiles; number of this tile.
        alignment: power of two up to 16 that divides the columns of each matrix.
    """

    start: int
    stop: int
    tiles: torch.Tensor
    alignment: int


class Class(NamedTuple):
    """Matrices with tiles of one size.

    Attributes:
        block: rows and columns of a tile.
        gram_tiles: (T, 8) int64, the tiles on and below the diagonal of the gram matrices: start of the
            matrix in the buffer, its row's length there; start of its gram matrix, and its rows; first row
            and column of the tile; first tile of the matrix in `Chunk.tiles` and number of those tiles.
        tiles: (T, 8) int64, the tiles of the matrices, described likewise.
    """

    block: int
    gram_tiles: torch.Tensor
    tiles: torch.Tensor


class Layout(NamedTuple):
    """The place of each matrix, and all tiles.

    Attributes:
        num_elements: length of the buffer of the matrices.
        num_gram_elements: length of the buffer of the gram matrices.
        num_tiles: tiles of all chunks.
        chunks: launches that go through the weights.
        classes: launches of products.
    """

    num_elements: int
    num_gram_elements: int
    num_tiles: int
    chunks: tuple[Chunk, ...]
    classes: tuple[Class, ...]


class _Place(NamedTuple):
    """One matrix: rows and columns in memory, block, sizes in the buffer, starts, and tiles."""

    rows: int
    columns: int
    block: int
    height: int
    width: int
    start: int
    gram_start: int
    first_tile: int
    num_tiles: int

    @property
    def transposed(self) -> bool:
        return self.rows > self.columns


@cache  # without a limit: a captured CUDA graph reads the tables as long as it lives
def layout_of(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Layout:
    """Return the layout of matrices of these rows and columns, copied to the device once.

    The first call for some shapes waits for the copy: make it before a CUDA graph is captured.
    """
    places = _places(shapes)
    last = places[-1]
    chunks = tuple(
        _chunk(places, start, min(start + _MATRICES, len(places)), device)
        for start in range(0, len(places), _MATRICES)
    )
    blocks = sorted({place.block for place in places})
    return Layout(
        last.start + last.height * last.width,
        last.gram_start + last.height * last.height,
        last.first_tile + last.num_tiles,
        chunks,
        tuple(_class([place for place in places if place.block == block], device) for block in blocks),
    )


def _places(shapes: Sequence[tuple[int, int]]) -> list[_Place]:
    places, start, gram_start, tile = [], 0, 0, 0
    for rows, columns in shapes:
        short, long = min(rows, columns), max(rows, columns)
        block = next(block for block, most in BLOCKS if most is None or short <= most)
        height, width = (-(-size // block) * block for size in (short, long))
        num_tiles = height * width // TILE**2
        places.append(_Place(rows, columns, block, height, width, start, gram_start, tile, num_tiles))
        start, gram_start, tile = start + height * width, gram_start + height * height, tile + num_tiles
    return places


def _chunk(places: Sequence[_Place], start: int, stop: int, device: torch.device) -> Chunk:
    tables = []
    for number, place in enumerate(places[start:stop]):
        row, column = _corners(place.height, place.width, TILE)
        if place.transposed:  # in the weight
            row, column = column, row
        constants = [place.start, place.width, int(place.transposed), place.first_tile, place.num_tiles]
        parts = (
            torch.tensor([number, place.rows, place.columns]).expand(len(row), -1),
            torch.stack([row, column], dim=1),
            torch.tensor(constants).expand(len(row), -1),
            (place.first_tile + torch.arange(len(row)))[:, None],
        )
        tables.append(torch.cat(parts, dim=1))
    columns = [place.columns for place in places[start:stop]]
    alignment = next(power for power in (16, 8, 4, 2, 1) if all(count % power == 0 for count in columns))
    return Chunk(start, stop, torch.cat(tables).to(device), alignment)


def _class(places: Sequence[_Place], device: torch.device) -> Class:
    """Return a class with the tiles of the longest sums first, so that no long one starts last."""
    block = places[0].block
    by_width, by_height = (
        sorted(places, key=lambda place: size(place), reverse=True)
        for size in (lambda place: place.width, lambda place: place.height)
    )
    gram_tiles = [_product_tiles(place, place.height, lower=True) for place in by_width]
    tiles = [_product_tiles(place, place.width, lower=False) for place in by_height]
    return Class(block, torch.cat(gram_tiles).to(device), torch.cat(tiles).to(device))


def _product_tiles(place: _Place, width: int, *, lower: bool) -> torch.Tensor:
    row, column = _corners(place.height, width, place.block)
    if lower:
        row, column = row[row >= column], column[row >= column]
    before = torch.tensor([place.start, place.width, place.gram_start, place.height])
    after = torch.tensor([place.first_tile, place.num_tiles])
    corner = torch.stack([row, column], dim=1)
    return torch.cat([before.expand(len(row), -1), corner, after.expand(len(row), -1)], dim=1)


def _corners(height: int, width: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first row and the first column of each tile."""
    corners = torch.cartesian_prod(torch.arange(0, height, block), torch.arange(0, width, block))
    return corners[:, 0], corners[:, 1]
