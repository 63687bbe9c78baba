"""Train, and send this process a signal after a step.

`python -m tests.integration.interrupted SIGNAL STEP CONFIG key=value…`. With CRASH in place of a signal,
training fails with an error that the pipeline does not expect.
"""

import os
import signal
import sys
from typing import Any

from pipeline import train
from pipeline.training.step import Step, StepOutput


def interrupt_at(last: int, name: str) -> None:
    """Let training send its own process a signal, or fail, after step LAST."""
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
