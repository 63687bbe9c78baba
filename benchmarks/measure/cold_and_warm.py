"""Measures what a user waits for a first trained network, with cold and with warm compile caches."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure.started_run import has_launcher
from benchmarks.measure.stopping import run_to_end
from benchmarks.peers.watched import user_environment
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES

_ROOT = Path(__file__).parents[2]
_WAITED = re.compile(r"^from the command to the first trained network: ([\d.]+) s", re.MULTILINE)
_LAST_LINES = 5


@dataclass(frozen=True)
class Waits:
    """Seconds from the command to the end of the first training.

    Attributes:
        cold_s: with compile caches that were empty.
        warm_s: with the caches that this start has filled.
    """

    cold_s: float
    warm_s: float


def measure_waits(recipe: str, overrides: Sequence[str]) -> Waits:
    """Start the benchmark for one run in a process of its own, twice, and read what it says.

    Args:
        recipe, overrides: of the benchmark.

    Raises:
        TrainingError: a start failed; with the end of its output.
    """
    given = user_environment()
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in given.items() if name not in VARIABLES}
        environment["XDG_CACHE_HOME"] = cache
        cold_s, warm_s = (_start(recipe, overrides, environment) for _ in range(2))
    return Waits(cold_s, warm_s)


def _start(recipe: str, overrides: Sequence[str], environment: dict[str, str]) -> float:
    arguments = ["time-to-accuracy", recipe, *overrides, "--runs", "1"]
    ended = run_to_end(
        [*_program(), *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    found = _WAITED.search(ended.stdout)
    if ended.returncode or found is None:
        lines = ended.stdout.strip().splitlines()[-_LAST_LINES:]
        raise TrainingError("\n".join([f"a start failed with exit code {ended.returncode}:", *lines]))
    return float(found[1])


def _program() -> list[str]:
    """Return the beginning of the command; launch.sh changes into its own folder, and so suits only there."""
    if has_launcher() and Path.cwd() == _ROOT.resolve():
        return [str(_ROOT / "launch.sh"), "bench"]
    return [sys.executable, "-m", "benchmarks"]
