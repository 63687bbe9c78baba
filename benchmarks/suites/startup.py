"""Time the start of a run, to the end of the first optimizer step, with a cold and a warm compile cache.

Every start is a new process, by launch.sh if this Python is that of its .venv, otherwise by `python -m
pipeline.train`, the module that launch.sh calls. The compile cache is a new folder: the first start with it
is cold, the starts after it are warm. The data set's cache of decoded images is left as it is; after the
first start it is full.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measure.options import check_at_least, merge
from benchmarks.measure.session import Session
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES
from pipeline.run.records import RunResult

_ROOT = Path(__file__).parents[2]
_SHORT = (
    "duration=20st",
    "log.eval_every=20st",
    "log.checkpoint_every=20st",
    "log.explain=false",
    "log.report=false",
    "log.tensorboard=false",
)


def has_launcher() -> bool:
    """Return True if launch.sh has set up this Python; it would have to set up another one first."""
    return Path(sys.executable).parent == _ROOT / ".venv/bin" and (_ROOT / ".venv/.installed").is_file()


def command_line(recipe: str, overrides: list[str]) -> list[str]:
    """Return the command line of one start."""
    if has_launcher():
        return [str(_ROOT / "launch.sh"), "train", recipe, *overrides]
    return [sys.executable, "-m", "pipeline.train", recipe, *overrides]


def start(recipe: str, overrides: list[str], cache: Path) -> float:
    """Start a short run and wait for its end.

    Returns:
        Seconds from the command to the end of the first optimizer step.

    Raises:
        TrainingError: the run failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        # without the variables that point to the cache of this process
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environment |= {
            "XDG_CACHE_HOME": str(cache),
            "NUM_PROCESSES": "1",
            "QUICKRES_START_TIME": str(time.time()),
        }
        command = command_line(recipe, merge(overrides, [f"log.dir={folder}"]))
        done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
        results = sorted(Path(folder).glob("*-*/result.json"))
        if done.returncode or not results:
            output = (done.stderr + done.stdout).strip().splitlines()[-5:]
            raise TrainingError(
                "\n".join([f"the run that was started failed with exit code {done.returncode}:", *output])
            )
        return _first_step_s(results[0])


def _first_step_s(path: Path) -> float:
    seconds = RunResult.read(path).first_step_s
    assert seconds is not None, "the run has taken steps"
    return seconds


def run(session: Session) -> None:
    check_at_least(0, session.options, "warm_starts")
    config = session.config(*_SHORT)
    overrides = merge(_SHORT, session.overrides)
    warm_starts = 0 if session.quick else session.options.warm_starts
    recipe = str(Path(session.recipe).resolve())
    with tempfile.TemporaryDirectory() as cache:
        seconds_of: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(1 + warm_starts):
            kind = "warm" if number else "cold"
            session.show(f"{kind} start")
            seconds_of[kind].append(start(recipe, overrides, Path(cache)))
    launcher = "launch.sh" if has_launcher() else "pipeline.train"
    for kind, seconds in seconds_of.items():
        if seconds:
            session.record(
                "startup",
                f"{kind} compile cache, {launcher}",
                config,
                None,
                first_step_s=median(seconds),
                first_step_n=len(seconds),
            )
    session.print_tables()
