"""Shows on a terminal how far a loop is, with the time left."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def shown(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar on stderr that is removed at the end; without a terminal, none.

    Args:
        items: of the loop.
        text: names the work.
        total: number of items; default: their length.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, text, total, console=console, transient=True)
