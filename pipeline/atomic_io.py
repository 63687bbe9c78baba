"""Writes whole files, reads JSON files, and computes checksums."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a reader finds the old content or the new, also after a power cut.

    Args:
        path: the file; replaced if it is there.
        content: text is encoded as UTF-8; characters that UTF-8 cannot encode are replaced by "?".

    Raises:
        OSError: with the path of the file.
    """
    data = content if isinstance(content, bytes) else content.encode(errors="replace")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        flush_to_disk(temporary)  # after a power cut, a name without its content would pass for a whole file
        temporary.replace(path)
    except OSError as error:  # a full disk is noticed by a write, whose error names no file
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        OSError: with the path of the file.
    """
    write_whole(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); is the run finished?") from None


def flush_to_disk(path: Path) -> None:
    """Make the operating system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
