"""Lets one process at a time write a run folder."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import UserError

_PATIENCE_S = 15.0  # a run that was asked to stop may still be saving


class RunIsBusy(UserError):
    """Another process writes the run folder."""


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
            RunIsBusy: another process holds the lock; the message names that process.
            UserError: the lock file cannot be written.
        """
        assert self._lock is None
        file = path / ".lock"
        # without locks, filelock would fall back on a file that outlives a killed process
        lock = FileLock(file, timeout=_PATIENCE_S, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            if not _refuses_all_locks(file):
                raise RunIsBusy(_describe_owner(path, file)) from None
        except OSError as error:
            if error.filename is not None:  # the file cannot be opened; a refused lock names no file
                raise _cannot_write(file, error) from None
        with contextlib.suppress(OSError):  # a full disk; the lock holds without the name of its owner
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _refuses_all_locks(file: Path) -> bool:
    """True if the system denies each lock; filelock takes that for a lock of another process, and waits."""
    try:
        with file.open("r+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _describe_owner(path: Path, file: Path) -> str:
    owner = file.read_text(errors="replace")[:200].strip("\0 \n") or "another process"
    return (
        f"resume: {path} is being trained by {owner}; wait for its end, or start another run with resume=none"
    )


def _cannot_write(file: Path, error: OSError) -> UserError:
    kind = "is a link" if file.is_symlink() else f"cannot be written ({error.strerror})"
    return UserError(
        f"{file}: {kind}, but the process that trains the run locks this file; remove or mend it, or start "
        "another run with resume=none"
    )
