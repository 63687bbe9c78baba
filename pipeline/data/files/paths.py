"""File names by the million: one block of bytes and where each name ends, about a third of what a list of strings takes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """An unchangeable list of file names, of any bytes that a file system allows.

    Args:
        block: the names as the file system has them, one behind the other.
        ends: (N,) int64, where each name ends in `block`.
    """

    def __init__(self, block: bytes, ends: np.ndarray):
        assert ends.dtype == np.int64 and (int(ends[-1]) if len(ends) else 0) == len(block), (
            "the names do not fill the block"
        )
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Paths":
        """
        >>> list(Paths.of(["a/0.jpg", "été/1.jpg"]))
        ['a/0.jpg', 'été/1.jpg']
        """
        encoded = [os.fsencode(name) for name in names]
        return cls(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Paths"]) -> "Paths":
        """All parts, one behind the other."""
        starts = np.cumsum([0, *(len(part.block) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(b"".join(part.block for part in parts), np.concatenate([np.empty(0, np.int64), *ends]))

    def raw(self, index: int) -> bytes:
        """The bytes of a name; INDEX is not negative."""
        return self.block[self.ends[index - 1] if index else 0 : self.ends[index]]

    def take(self, indices: np.ndarray) -> "Paths":
        """The names with these ids, copied."""
        names = [self.raw(index) for index in indices.tolist()]
        return Paths(b"".join(names), np.cumsum([len(name) for name in names], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self.raw(index % len(self)))

    def __iter__(self) -> Iterator[str]:
        return (os.fsdecode(self.raw(index)) for index in range(len(self)))
