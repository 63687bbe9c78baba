"""Tells what a measurement of whole runs needs to know of the process, its sources, caches and GPU."""

import getpass
import hashlib
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.publish.whole_runs import GpuState
from pipeline.process.cache_dirs import COMPILE_CACHES
from pipeline.process.start_time import process_started
from pipeline.run.environment import ask_nvidia_smi

_ROOT = Path(__file__).parents[2]
_SOURCES = ("pipeline", "kernels", "benchmarks")
_COMPILED = (".cubin", ".so")  # of Triton and of inductor on the CPU
_FIELDS = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw"


def seconds_since_start() -> float:
    """Return the seconds since this process started. `launch.sh` becomes this process, so its time counts."""
    return time.perf_counter() - process_started()


def count_compiled(since: float, folders: Collection[str] | None = None) -> int:
    """Count the kernels that have been written to compile caches.

    Args:
        since: seconds since 1970; older kernels were in the caches before.
        folders: the caches; None: those of this process.
    """
    folders = folders or {os.environ[variable] for variable in COMPILE_CACHES if variable in os.environ}
    written = (
        os.path.join(top, name) for folder in folders for top, _, names in os.walk(folder) for name in names
    )
    return sum(path.endswith(_COMPILED) and os.path.getmtime(path) >= since for path in written)


def default_caches() -> tuple[str, ...]:
    """Return the compile caches of a program that sets none: those of inductor, and of Triton alone."""
    inductor = os.path.join(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    return inductor, str(Path.home() / ".triton" / "cache")


def hash_of_sources(recipe: Path, folders: Sequence[str] = _SOURCES) -> str:
    """Return 16 hex digits of a SHA-256 over the names and contents of all Python files, and of a recipe.

    Args:
        recipe: its path.
        folders: of the files, in the checkout.
    """
    files = sorted(path for folder in folders for path in (_ROOT / folder).rglob("*.py"))
    return _hash([(path.relative_to(_ROOT).as_posix(), path) for path in files] + [("recipe", recipe)])


def hash_of_program(path: Path) -> str:
    """Return 16 hex digits of a SHA-256 over one file."""
    return _hash([("program", path)])


def hash_of_folder(folder: Path, *patterns: str) -> str:
    """Return 16 hex digits of a SHA-256 over the names and contents of the files of these patterns."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return _hash((path.relative_to(folder).as_posix(), path) for path in files)


def _hash(files: Iterable[tuple[str, Path]]) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def gpu_state(device: torch.device) -> GpuState | None:
    """Return clocks, temperature and power of a GPU now; None on the CPU."""
    if device.type != "cuda":
        return None
    return parse_gpu_state(ask_nvidia_smi(device, _FIELDS))


def parse_gpu_state(line: str) -> GpuState:
    """Return the state in a line of nvidia-smi; a value that it does not know, such as `[N/A]`, is None.

    >>> parse_gpu_state("1980, 3201, 1980, 41, [N/A]")
    GpuState(sm_mhz=1980.0, memory_mhz=3201.0, max_sm_mhz=1980.0, temperature_c=41.0, power_w=None)
    """
    values = [float(word) if word.replace(".", "", 1).isdigit() else None for word in line.split(", ")]
    return GpuState(**dict(zip(GpuState.model_fields, values, strict=False)))
