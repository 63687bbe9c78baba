"""Starts groups of processes that measure, by accelerate's launcher, and reads what they have written."""

import os
import subprocess
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

from benchmarks.measure.session import Session
from benchmarks.measure.stopping import run_to_end
from benchmarks.scaling.scaling_model import Calibration
from benchmarks.scaling.scaling_worker import CALIBRATIONS, MEASUREMENTS, Measurement
from pipeline.errors import TrainingError
from pipeline.process.cores import share_of_cores

_CONFIGS = Path(__file__).parents[2] / "configs/accelerate"
_LAST_LINES = 8
_TORCHRUN = "torch/distributed/elastic/multiprocessing"  # in the first line of its report of a failure


def measure(session: Session, world_size: int, threads: int) -> list[Measurement]:
    """Return the measurements of a group.

    Raises:
        TrainingError: the group failed; with the end of its output.
    """
    return MEASUREMENTS.validate_json(_launch(session, world_size, threads))


def calibrate(session: Session, threads: int) -> dict[str, Calibration]:
    """Return the calibrations of a group of two, by the loader; errors as of `measure`."""
    return CALIBRATIONS.validate_json(_launch(session, 2, threads, "--calibrate"))


def last_words(output: str) -> str:
    """Return the errors in a process group's output, or else its last lines, without torchrun's report."""
    lines = output.strip().splitlines()
    before = [line for line in takewhile(lambda line: _TORCHRUN not in line, lines) if line.strip()] or lines
    # several processes print the same
    errors = dict.fromkeys(line for line in before if line.startswith("error: "))
    return "\n".join(errors or before[-_LAST_LINES:])


def num_threads(largest: int) -> int:
    """Return the CPU threads of a process: one process gets the same share as it has beside the others."""
    return int(os.environ.get("OMP_NUM_THREADS") or share_of_cores(largest))


def _launch(session: Session, world_size: int, threads: int, *extra: str) -> bytes:
    """Start a group, wait for its end, and return the contents of its file."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output.json"
        command = [*_command(session, world_size, threads, output), *extra]
        ended = run_to_end(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if ended.returncode or not output.exists():
            group = "one process" if world_size == 1 else f"{world_size} processes"
            raise TrainingError(
                f"measuring {group} failed with exit code {ended.returncode}:\n{last_words(ended.stdout)}"
            )
        return output.read_bytes()


def _command(session: Session, world_size: int, threads: int, output: Path) -> list[str]:
    hardware = f"{'gpu' if session.on_gpu else 'cpu'}{1 if world_size == 1 else 2}"
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", str(_CONFIGS / f"{hardware}.yaml")),
        *("--num_processes", str(world_size)),
        *("--num_cpu_threads_per_process", str(threads)),
        *("-m", "benchmarks.scaling.scaling_worker"),
        *("--output", str(output)),
        *("--loaders", ",".join(session.options.loaders)),
        *("--windows", str(session.windows)),
        *("--steps", str(session.steps)),
        *(["--averaging", ",".join(averaging)] if (averaging := session.options.averaging) else []),
        *(["--quick"] if session.quick else []),
        *(str(Path(session.recipe).resolve()), *session.overrides),
    ]
