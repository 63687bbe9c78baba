"""Lets one process at a time write a run folder."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError

_PATIENCE_S = 15.0  # a run that was asked to stop may still be saving


class RunLock:
    """Locks a run folder for the process that writes it. If the process dies, the system frees the lock."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, path: Path) -> None:
        """Lock the folder at PATH; wait some seconds at most. A file system without locks locks nothing.

        Raises:
            UserError: another process holds the lock; the message names that process.
        """
        assert self._lock is None
        file = path / ".lock"
        # without locks, filelock would fall back on a file that outlives a killed process
        lock = FileLock(file, timeout=_PATIENCE_S, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            owner = file.read_text(errors="replace")[:200].strip() or "another process"
            raise UserError(
                f"resume: {path} is being trained by {owner}; wait for its end, or start another run with "
                "resume=none"
            ) from None
        except OSError as error:
            if error.filename is not None:  # the file cannot be opened; a refused lock names no file
                raise
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
