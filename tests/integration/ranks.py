"""Starts the processes of a run without a launcher, forked from a server that has imported everything."""

import contextlib
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.distributed.launcher import outcome
from tests.patience import PATIENCE_S, wait_until
from tests.python import ROOT

_CONTEXT = multiprocessing.get_context("forkserver")


def _run(
    work: Callable[..., int], rank: int, world_size: int, folder: Path, arguments: tuple[Any, ...]
) -> None:
    """Set what torchrun sets, send output to files, and work; the exit code is the result of the work."""
    import torch

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["RANKS_FOLDER"] = str(folder)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        file = os.open(folder / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # torch uses its own deprecated functions
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
    code = 1
    try:
        code = work(rank, *arguments)
    except Exception as error:  # as the interpreter does
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Ranks:
    """Starts a run on several processes.

    Attributes:
        processes: one for each rank.
    """

    def __init__(self, folder: Path, world_size: int, work: Callable[..., int], *arguments: Any):
        import torch

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # the ranks connect to a store of this process, as to torchrun's
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store: torch.distributed.Store | None = store
        address = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            process = _CONTEXT.Process(
                target=_with, args=(address, work, rank, world_size, folder, arguments), daemon=True
            )
            process.start()
            self.processes.append(process)

    def pid(self, rank: int) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def wait(self, timeout_s: float = PATIENCE_S) -> list[int | None]:
        """Return the exit codes; None for a process that still runs after the timeout."""
        ends = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(ends - time.monotonic(), 0))
        return [process.exitcode for process in self.processes]

    def wait_for(self, pattern: str, limit_s: float = PATIENCE_S) -> None:
        """Wait for a file of this pattern in the folder."""

        def is_there() -> bool:
            assert self.processes[0].exitcode is None, self.errors
            return any(self.folder.glob(pattern))

        wait_until(is_there, pattern, limit_s)

    def text(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def end_store(self) -> None:
        """End the store, as if the launcher were killed."""
        self._store = None

    @property
    def errors(self) -> list[str]:
        """The lines of all processes on stderr, without torch's rank before each line of a traceback."""
        lines = [
            line for rank in range(len(self.processes)) for line in self.text(f"err-{rank}").splitlines()
        ]
        return [re.sub(r"^\[rank\d+\]: ", "", line) for line in lines]

    @property
    def exit_code(self) -> int:
        """The exit code of the run, as the launcher finds it."""
        codes = [(rank, process.exitcode or 0) for rank, process in enumerate(self.processes)]
        failed = [(rank, code) for rank, code in codes if code]
        return outcome(failed)[0] if failed else 0


def _with(address: dict[str, str], work: Callable[..., int], *arguments: Any) -> None:
    os.environ |= address
    _run(work, *arguments)


@contextlib.contextmanager
def ranks(folder: Path, world_size: int, work: Callable[..., int], *arguments: Any) -> Iterator[Ranks]:
    """Start the processes, and kill those that are left at the end."""
    preload()
    started = Ranks(folder, world_size, work, *arguments)
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def preload() -> None:
    """Choose the imports of the server, before its first process."""
    assert Path.cwd() == ROOT
    _CONTEXT.set_forkserver_preload(["tests.integration.preloaded"])
