"""Wait for an event; the time limit is so long that a test on a busy machine still passes."""

import time
from collections.abc import Callable

# less than pytest's limit for a whole test, so that the test says which event did not happen
PATIENCE_S = 120.0


def wait_until(happened: Callable[[], object], event: str, limit_s: float = PATIENCE_S) -> None:
    """Return as soon as the event has happened.

    Raises:
        AssertionError: it has not happened within the limit.
    """
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end, f"{event}: not within {limit_s:g} s"
        time.sleep(0.02)
