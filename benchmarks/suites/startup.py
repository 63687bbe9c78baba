"""Seconds from the command to the end of the first optimizer step, with a cold and with a warm compile cache.

Every start is a process of its own, by launch.sh where this Python is the one of its .venv, otherwise by `python -m pipeline.train`, which
is what launch.sh then calls. The compile cache is a folder made for the purpose: cold is the first start with it, warm are those after it.
The data set's cache of decoded images is as it is found, which after the first start of all is: filled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.measure.options import check_at_least, merge
from benchmarks.measure.session import Session
from pipeline.atomic_io import read_json
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES

_ROOT = Path(__file__).parents[2]
_SHORT = (
    "duration=20st",
    "log.eval_every=20st",
    "log.checkpoint_every=20st",
    "log.explain=false",
    "log.report=false",
    "log.tensorboard=false",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--warm-starts", type=int, default=2, help="starts with a warm cache (default: 2)")


def has_launcher() -> bool:
    """Whether this Python is the one that launch.sh has set up; another one it would have to set up first."""
    return Path(sys.executable).parent == _ROOT / ".venv/bin" and (_ROOT / ".venv/.installed").is_file()


def command_line(recipe: str, overrides: list[str]) -> list[str]:
    """The command line of one start."""
    if has_launcher():
        return [str(_ROOT / "launch.sh"), "train", recipe, *overrides]
    return [sys.executable, "-m", "pipeline.train", recipe, *overrides]


def start(recipe: str, overrides: list[str], cache: Path) -> float:
    """Start a short run, wait for its end, and return the seconds from the command to the end of its first optimizer step.

    Raises:
        TrainingError: it failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            name: value for name, value in os.environ.items() if name not in VARIABLES
        }  # of this process's own cache
        environment |= {
            "XDG_CACHE_HOME": str(cache),
            "NUM_PROCESSES": "1",
            "QUICKRES_START_TIME": str(time.time()),
        }
        command = command_line(recipe, merge(overrides, [f"log.dir={folder}"]))
        done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True)
        results = sorted(Path(folder).glob("*-*/result.json"))
        if done.returncode or not results:
            said = (done.stderr + done.stdout).strip().splitlines()[-5:]
            raise TrainingError(
                "\n".join([f"the run that was started failed with exit code {done.returncode}:", *said])
            )
        return read_json(results[0])["first_step_s"]


def run(session: Session) -> None:
    check_at_least(0, session.options, "warm_starts")
    config = session.config(*_SHORT)
    overrides = merge(_SHORT, session.overrides)
    warm_starts = 0 if session.quick else session.options.warm_starts
    recipe = str(Path(session.recipe).resolve())
    with tempfile.TemporaryDirectory() as cache:
        taken: dict[str, list[float]] = {"cold": [], "warm": []}
        for number in range(1 + warm_starts):
            kind = "warm" if number else "cold"
            session.show(f"{kind} start")
            taken[kind].append(start(recipe, overrides, Path(cache)))
    by = "launch.sh" if has_launcher() else "pipeline.train"
    for kind, seconds in taken.items():
        if seconds:
            session.record(
                "startup",
                f"{kind} compile cache, {by}",
                config,
                None,
                first_step_s=median(seconds),
                first_step_n=len(seconds),
            )
    session.print_tables()
