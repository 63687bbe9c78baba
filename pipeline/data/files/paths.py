"""Stores millions of file names in one block of bytes, and prints file names safely."""

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np


class Paths(Sequence[str]):
    """An immutable list of file names, of any bytes that a file system allows.

    It takes about a third of the memory of a list of strings.

    Args:
        block: all names as the file system stores them, one after the other.
        ends: (N,) int64, the end of each name in `block`.
    """

    def __init__(self, block: bytes, ends: np.ndarray):
        length = int(ends[-1]) if len(ends) else 0
        assert ends.dtype == np.int64 and length == len(block), "the names do not fill the block"
        self.block, self.ends = block, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Paths":
        """Store these names.

        >>> list(Paths.of(["a/0.jpg", "été/1.jpg"]))
        ['a/0.jpg', 'été/1.jpg']
        """
        return cls._of_bytes([os.fsencode(name) for name in names])

    @classmethod
    def _of_bytes(cls, names: list[bytes]) -> "Paths":
        return cls(b"".join(names), np.cumsum([len(name) for name in names], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Paths"]) -> "Paths":
        """Concatenate several lists."""
        starts = np.cumsum([0, *(len(part.block) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(b"".join(part.block for part in parts), np.concatenate([np.empty(0, np.int64), *ends]))

    def raw(self, index: int) -> bytes:
        """Return the bytes of one name; INDEX is not negative."""
        return self.block[self.ends[index - 1] if index else 0 : self.ends[index]]

    def take(self, indices: np.ndarray) -> "Paths":
        """Copy the names with these indices."""
        return self._of_bytes([self.raw(index) for index in indices.tolist()])

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


def from_root(root: Path, name: str) -> str:
    """Return a path relative to a folder; NAME is relative to it already, or absolute."""
    if not name.startswith("/"):
        return name
    prefix = f"{os.path.abspath(root)}/"
    if name.startswith(prefix):
        return name.removeprefix(prefix)
    return os.path.relpath("/", os.path.realpath(root)) + name


def printable(name: str | Path) -> str:
    """Return a file name that any terminal or log can show: on one line, invalid UTF-8 as escapes."""
    # not os.fsencode: in the locale C it refuses the letters of a name that came from a recipe
    return on_one_line(str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def on_one_line(name: str) -> str:
    """Return a file name with its control characters as escapes."""
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in name
    )


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number and its noun.

    >>> counted(1, "folder"), counted(2_000, "folder"), counted(2, "class", "classes")
    ('1 folder', '2,000 folders', '2 classes')
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"
