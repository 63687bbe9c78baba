"""Kill a process at random moments of saving; each time, a checkpoint that can be loaded is left.

`python -m tests.kill_nine [--kills 50]`. A process saves one checkpoint after another, and is killed at a
random moment. Its checkpoints are verified and loaded, and the next process goes on from there, as a run
does. Processes are forked, so that a kill costs milliseconds, not the start of Python. At the end, the kills
are counted by what they left on disk.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pipeline.run.checkpoint import newest_intact
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.records import BestEvaluation
from pipeline.training.state import load_checkpoint
from tests.tiny import tiny_config, tiny_trainer

_HASH = "0123456789ab"
_LONGEST_S = 0.3  # the longest time between the first save and the kill


def save_without_end(checkpoints: Path, ready: int) -> None:
    """Continue from the newest checkpoint and save step after step.

    One byte into the pipe tells that saving begins.
    """
    trainer = tiny_trainer(tiny_config("ema.decay=0.9"))
    found, _ = newest_intact(checkpoints, _HASH)
    if found is not None:
        load_checkpoint(found, trainer.state)
    writer = CheckpointWriter(checkpoints, _HASH)
    os.write(ready, b".")
    while True:
        trainer.state.step += 1
        if trainer.state.step % 7 == 0:
            trainer.state.best = BestEvaluation(
                accuracy=0.5, step=trainer.state.step, selected_on="test", test_accuracy=0.5
            )
        writer.save(trainer.state.snapshot())


def kill_one(checkpoints: Path, draw: random.Random) -> None:
    """Fork a process that saves, and kill it."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_without_end(checkpoints, writable)
        finally:
            os._exit(1)
    os.close(writable)
    os.read(readable, 1)
    os.close(readable)
    time.sleep(draw.uniform(0, _LONGEST_S))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process that saves ended by itself"


def describe(checkpoints: Path) -> str:
    """Describe the files that a kill has left."""
    names = [path.name for path in checkpoints.iterdir()]
    if any(name.endswith(".old.tmp") for name in names):
        return "between moving an old one aside and putting the new one in its place"
    for half in checkpoints.glob(".step-*.tmp"):
        return f"{len(list(half.iterdir()))} of 4 files of a checkpoint begun"
    whole = len([name for name in names if name.startswith("step-")])
    return "while old ones were deleted" if whole > 3 else "between two checkpoints"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_nine", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    draw, left, trainer = (
        random.Random(options.seed),
        Counter[str](),
        tiny_trainer(tiny_config("ema.decay=0.9")),
    )
    folder = Path(tempfile.mkdtemp(prefix="kill-nine-"))
    checkpoints, steps = folder / "checkpoints", 0
    first = CheckpointWriter(checkpoints, _HASH)
    first.save(trainer.state.snapshot())
    first.close()
    try:
        for number in range(1, options.kills + 1):
            kill_one(checkpoints, draw)
            left[describe(checkpoints)] += 1
            found, damaged = newest_intact(checkpoints, _HASH)
            if found is None or damaged:
                problem = f"no checkpoint that can be loaded, or a damaged one: {damaged}"
                print(f"kill {number}: {folder} holds {problem}", file=sys.stderr)
                return 1
            load_checkpoint(found, trainer.state)
            if trainer.state.step < steps:
                print(
                    f"kill {number}: {folder} went back from step {steps} to {trainer.state.step}",
                    file=sys.stderr,
                )
                return 1
            steps = trainer.state.step
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{options.kills} kills, each left a checkpoint that loads; {steps} saved in all")
    for where, count in left.most_common():
        print(f"{count:4d}  {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
