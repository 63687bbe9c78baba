"""Runs a program of others or of ours as a user does, and watches its output, GPU memory and CPU time."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.measure.stopping import stop_tree
from pipeline.errors import TrainingError
from pipeline.process.cache_dirs import VARIABLES
from pipeline.process.threads import WAIT_VARIABLES

_LAST_LINES = 5
_PAUSE_S = 0.25  # between two looks at the GPU's memory
_SET_BY_US = (*WAIT_VARIABLES, *VARIABLES)
_OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # a program would wait for other processes


@dataclass(frozen=True)
class Watched:
    """What a process used.

    Attributes:
        wall_s: seconds from the command to the end of the process.
        cpu_s: seconds in user and system mode, of the process and of all that it waited for.
        peak_memory_bytes: largest use of the GPU's memory beyond that before; None on the CPU.
    """

    wall_s: float
    cpu_s: float
    peak_memory_bytes: int | None


@dataclass
class _GpuMemory:
    """The largest use of a GPU's memory beyond that at the start; sampled, so a short peak may be missed."""

    device: torch.device
    peak: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def used(self) -> int:
        free, total = torch.cuda.mem_get_info(self.device)
        return total - free

    @contextmanager
    def sampled(self) -> Iterator[None]:
        before = self.used()

        def sample() -> None:
            while not self._done.wait(_PAUSE_S):
                self.peak = max(self.peak, self.used() - before)

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()


def watch(
    command: Sequence[str],
    folder: Path,
    read: Callable[[str, float], None],
    device: torch.device,
    **variables: str,
) -> Watched:
    """Run a command to its end.

    Its CPU time is that of the process and of its children. A process that it leaves behind is not counted.

    Args:
        command: its words.
        folder: to run it in.
        read: takes each line of output, and the seconds since the command.
        device: whose memory is watched; of the CPU there is none to watch.
        variables: further ones of its environment.

    Raises:
        TrainingError: the exit code is not 0; with the end of the output.
    """
    memory = _GpuMemory(device) if device.type == "cuda" else None
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)
    with memory.sampled() if memory else contextlib.nullcontext():
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**user_environment(), "PYTHONUNBUFFERED": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip():
                    last_lines.append(line.rstrip())
                    read(line, time.perf_counter() - began)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
        wall_s = time.perf_counter() - began
    if process.returncode:
        code = f"{command[0]} … failed with exit code {process.returncode}:"
        raise TrainingError("\n".join([code, *last_lines]))
    return Watched(wall_s, usage.ru_utime + usage.ru_stime, memory.peak if memory else None)


def user_environment() -> dict[str, str]:
    """Return the environment that the user gave to this process, without what it has set for itself."""
    given = {os.fsdecode(item.partition(b"=")[0]) for item in _read_first_environment().split(b"\0")}
    added = {name for name in _SET_BY_US if name not in given}
    return {name: value for name, value in os.environ.items() if name not in {*added, *_OF_LAUNCHERS}}


def _read_first_environment() -> bytes:
    """Return the environment at the start of this process: `NAME=value`, with zero bytes in between."""
    return Path("/proc/self/environ").read_bytes()


def _end(process: "subprocess.Popen[str]") -> None:
    """Stop a process, its descendants, and those of its group whose parent has ended."""
    stop_tree(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
