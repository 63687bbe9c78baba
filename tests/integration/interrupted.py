"""`python -m tests.integration.interrupted SIGNAL STEP CONFIG key=value…`: train, and send this very process a signal after a step."""

import os
import signal
import sys
from typing import Any

from pipeline import train
from pipeline.step import Step, StepOutput


def interrupt_at(last: int, number: int) -> None:
    """From now on, training sends its own process a signal once step LAST is done."""
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        output = step(self, batch)
        if self._state.step == last:
            os.kill(os.getpid(), number)
        return output

    Step.__call__ = watched


if __name__ == "__main__":
    interrupt_at(int(sys.argv[2]), signal.Signals[sys.argv[1]])
    sys.exit(train.main(sys.argv[3:]))
