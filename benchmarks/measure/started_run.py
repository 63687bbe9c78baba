"""Starts a run as a person does, in a process of its own, and reads its result."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.options import merge
from benchmarks.measure.stopping import run_to_end
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES
from pipeline.run.environment_record import read_num_threads
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class StartedRun:
    """One run.

    Attributes:
        result: as the run recorded it.
        whole_s: seconds from the command to its end.
        cpu_threads: as the run recorded it.
    """

    result: RunResult
    whole_s: float
    cpu_threads: int | None = None

    @property
    def timeline(self) -> dict[str, float]:
        """Seconds of the parts, which add up to `whole_s`: the exit is what the run could not time."""
        parts = {name: seconds for name, seconds in self.result.timeline.items() if seconds is not None}
        parts["exit"] = 0.0
        return {**parts, "exit": max(self.whole_s - sum(parts.values()), 0.0)}


def has_launcher() -> bool:
    """Return True if launch.sh has set up this Python, for this folder; it would have to install first
    otherwise."""
    environment = _ROOT.resolve() / ".venv"  # a link leads to the environment of another folder
    installed = environment.resolve() == environment and (environment / ".installed").is_file()
    return installed and Path(sys.executable).parent == _ROOT / ".venv/bin"


def command_line(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Return the command line of one run: by launch.sh, or else by the module that launch.sh calls."""
    if has_launcher():
        return [str(_ROOT / "launch.sh"), "train", recipe, *overrides]
    return [sys.executable, "-m", "pipeline.train", recipe, *overrides]


def start(recipe: str, overrides: Sequence[str], cache: Path | None = None, **variables: str) -> StartedRun:
    """Start a run, wait for its end, and remove its folder.

    Args:
        recipe, overrides: of the run.
        cache: folder of its compile caches; default: the user's.
        variables: further ones of its environment.

    Raises:
        TrainingError: the run failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "NUM_PROCESSES": "1",
            "QUICKRES_START_TIME": str(time.time()),
            **variables,
        }
        if cache is not None:  # without the variables that point to the cache of this process
            environment = {name: value for name, value in environment.items() if name not in VARIABLES}
            environment["XDG_CACHE_HOME"] = str(cache)
        command = command_line(recipe, merge(overrides, [f"log.dir={folder}"]))
        began = time.perf_counter()
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ended = run_to_end(command, env=environment, cwd=_ROOT, **pipes)
        whole_s = time.perf_counter() - began
        results = sorted(Path(folder).glob("*-*/result.json"))
        if ended.returncode or not results:
            output = (ended.stderr + ended.stdout).strip().splitlines()[-5:]
            failure = f"the run that was started failed with exit code {ended.returncode}:"
            raise TrainingError("\n".join([failure, *output]))
        threads = read_num_threads(RunFolder(results[0].parent).environment)
        return StartedRun(RunResult.read(results[0]), whole_s, threads)
