"""Finds files that stand under two labels, and test files that are training files too."""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.data.files.listing import Listing
from pipeline.data.files.paths import counted, printable


def find_copies(listing: Listing, identities: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield a warning for files with several labels, and one for test files that are training files.

    Args:
        listing: the files.
        identities: (N,) int64 by part: equal numbers mark equal files. 0: the file is compared with none.
    """
    train, test = (_Part(listing, part, identities[part]) for part in ("train", "test"))
    for part in (train, test):
        pair = part.find_conflict()
        if pair is not None:
            count, first, second = pair
            files = counted(count, f"{part.name} file stands", f"{part.name} files stand")
            yield (
                f"{listing.key_of(part.name)}: {files} under several labels: "
                f"{part.describe(first)} and {part.describe(second)} are the same; remove the wrong one"
            )
    shared = np.flatnonzero(np.isin(test.identity, train.identity[train.identity != 0]))
    if len(shared):
        first = int(shared[0])
        twin = int(np.flatnonzero(train.identity == test.identity[first])[0])
        are = "is a training file" if len(shared) == 1 else "are training files"
        yield (
            f"{listing.key_of('test')}: {len(shared):,} of {len(test.identity):,} test files {are} too "
            f"({test.describe(first)} and {train.describe(twin)} are the same): the test accuracy is not "
            "that of new images"
        )


class _Part:
    """One part of a listing, with the identity of each file."""

    def __init__(self, listing: Listing, name: str, identity: np.ndarray):
        self.name, self.identity = name, identity
        self._files, self._classes = listing.parts[name], listing.classes

    def describe(self, index: int) -> str:
        """Return path and class of a file."""
        name = self._classes[self._files.labels[index]]
        return f"{printable(self._files.paths[index])} (class {printable(name)})"

    def find_conflict(self) -> tuple[int, int, int] | None:
        """Return the number of files with several labels, and two indices of the first such file."""
        known = np.flatnonzero(self.identity)
        order = known[np.lexsort((self._files.labels[known], self.identity[known]))]
        identity, labels = self.identity[order], self._files.labels[order]
        differ = np.flatnonzero((identity[1:] == identity[:-1]) & (labels[1:] != labels[:-1]))
        if not len(differ):
            return None
        first = differ[np.argmin(np.minimum(order[differ], order[differ + 1]))]
        low, high = sorted((int(order[first]), int(order[first + 1])))
        return len(np.unique(identity[differ])), low, high
