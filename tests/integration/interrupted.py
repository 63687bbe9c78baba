"""`python -m tests.integration.interrupted SIGNAL STEP CONFIG key=value…`: train, and send this very process a signal after a step.

With CRASH for the signal, an error that nobody expects.
"""

import os
import signal
import sys
from typing import Any

from pipeline import train
from pipeline.training.step import Step, StepOutput


def interrupt_at(last: int, name: str) -> None:
    """From now on, training sends its own process a signal, or fails, once step LAST is done."""
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        output = step(self, batch)
        if self._state.step == last:
            if name == "CRASH":
                raise RuntimeError("nobody expects this")
            os.kill(os.getpid(), signal.Signals[name])
        return output

    Step.__call__ = watched


if __name__ == "__main__":
    interrupt_at(int(sys.argv[2]), sys.argv[1])
    sys.exit(train.main(sys.argv[3:]))
