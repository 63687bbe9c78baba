"""Finds the exit code of a run from those of its processes."""

import re
from signal import SIGKILL, SIGSEGV, SIGTERM

import pytest

from pipeline.distributed.launcher import outcome

KILLED = "error: process 1 was killed by SIGKILL .*memory.*resume=auto"
CRASHED = r"error: process 0 was killed by SIGSEGV\.[^(]*resume=auto"
STOPPED = "stopped: process 1 got SIGTERM; .*resume=auto"


@pytest.mark.parametrize(
    ("ends", "stopped_by", "code", "message"),
    [
        ([(0, 2), (1, 2)], 0, 2, None),
        ([(1, 1), (0, -SIGTERM)], 0, 1, None),
        ([(0, 255)], 0, 255, None),
        ([(1, -SIGKILL), (0, 1)], 0, 1, None),  # process 0 has named the killed one
        ([(1, -SIGKILL), (0, -SIGTERM)], 0, 1, KILLED),
        ([(1, -SIGKILL), (0, 128 + SIGTERM)], 0, 1, KILLED),  # process 0 left silently before the first step
        ([(0, -SIGSEGV)], 0, 1, CRASHED),
        ([(1, 75), (0, 75)], 15, 75, None),
        ([(0, 75), (1, 128 + SIGTERM)], 2, 75, None),  # torchrun's signal came late to process 1
        ([(0, -SIGTERM), (1, 75)], 15, 75, None),  # process 0 had not yet begun to listen
        ([(0, -SIGTERM), (1, -SIGTERM)], 2, 130, None),
        ([(1, 128 + SIGTERM), (0, 128 + SIGTERM)], 15, 75, STOPPED),  # process 0 saw the end of process 1
        ([(0, -SIGKILL), (1, -SIGKILL)], 15, 143, None),  # by a second signal
        ([(0, 1), (1, 75)], 15, 1, None),  # the checkpoint could not be written
        ([(1, -SIGTERM), (0, 128 + SIGTERM)], 0, 75, STOPPED),  # one process alone got the signal
    ],
)
def test_the_outcome(ends: list[tuple[int, int]], stopped_by: int, code: int, message: str | None):
    found, text = outcome(ends, stopped_by)
    assert found == code
    assert (text is None) if message is None else re.fullmatch(message, text or ""), text
