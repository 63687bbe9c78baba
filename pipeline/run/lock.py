"""One process at a time writes a run folder."""

import fcntl
import os
import socket
import time
from pathlib import Path

from pipeline.errors import UserError

_PATIENCE_S = 15.0  # a run that was told to stop may still be saving


class RunLock:
    """Held by the process that writes a run folder. The operating system gives it back when that process is gone, however it went."""

    def __init__(self) -> None:
        self._file: int | None = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, path: Path) -> None:
        """Wait some seconds at most.

        Raises:
            UserError: another process has it; names that process.
        """
        assert self._file is None
        file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        ends = time.monotonic() + _PATIENCE_S
        while not _lock(file):
            if time.monotonic() > ends:
                owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise UserError(
                    f"resume: {path} is being trained by {owner}; wait for its end, or start a run beside it with resume=none"
                )
            time.sleep(0.1)
        os.truncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing is kept from anybody
        return True
    return True
