"""What happens to a run on several processes, each scene a function that every process runs."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from pipeline import train
from pipeline.step import Step, StepOutput

Act = Callable[[], Any]


def before_step(number: int, act: Act) -> None:
    """From now on, this process does something once, before its step NUMBER."""
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        if self._state.step == number - 1:
            act()
        return step(self, batch)

    Step.__call__ = watched


def fail() -> None:
    raise RuntimeError("a bug on one process")


ACTS: dict[str, Act] = {
    "nothing": lambda: None,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fail": fail,
    "hang": lambda: time.sleep(600),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def run(rank: int, arguments: list[str], number: int = 0, acts: dict[int, str] | None = None) -> int:
    """Train; the processes that ACTS names do something before a step."""
    if acts and rank in acts:
        before_step(number, ACTS[acts[rank]])
    return train.main(arguments)
