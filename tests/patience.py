"""Wait for an event, with a limit that a loaded machine does not reach."""

import time
from collections.abc import Callable

PATIENCE_S = (
    120.0  # less than pytest's limit for a whole test, so that the test says which event did not happen
)


def wait_until(happened: Callable[[], object], event: str, limit_s: float = PATIENCE_S) -> None:
    """Return as soon as the event has happened.

    Raises:
        AssertionError: it has not happened within the limit.
    """
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end, f"{event}: not within {limit_s:g} s"
        time.sleep(0.02)
