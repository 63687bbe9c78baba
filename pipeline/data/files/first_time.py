"""Remembers that this process had to download, decode or index files, which later runs find in a cache."""

_count = 0


def note_first_time() -> None:
    """Note that work was done for the first time."""
    global _count
    _count += 1


def count_first_times() -> int:
    """Return how often such work was noted in this process."""
    return _count
