"""Writes whole files, reads JSON files, and computes checksums."""

import hashlib
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

_DEEPEST = 50  # a file of ours has a few levels of lists and objects
_TOO_DEEP = f"nests deeper than {_DEEPEST} levels"


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


def parse_json(text: str) -> Any:
    """Parse JSON as a run writes it.

    Raises:
        ValueError: the text is not JSON, or nests deeper than a recursive function could follow.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    layer = [value]
    for _ in range(_DEEPEST):
        layer = [
            item
            for container in layer
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not layer:
            return value
    raise ValueError(_TOO_DEEP)


def read_json(path: Path, remedy: str = "is the run finished?") -> Any:
    """Read a JSON file of a run.

    Args:
        path: the file.
        remedy: ends the message of an error.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); {remedy}") from None


def put_aside(path: Path, suffix: str = "damaged") -> Path:
    """Rename a damaged file, or a folder in the place of a file, to a free name beside it, which is returned.

    The name is NAME.SUFFIX, with a number if that is taken.

    Raises:
        OSError: the folder around it cannot be written.
    """
    names = (f"{path.name}.{suffix}{number or ''}" for number in count())
    aside = next(new for new in map(path.with_name, names) if not os.path.lexists(new))
    path.rename(aside)
    return aside


def follow_umask(path: Path) -> None:
    """Give a file the permissions of a new file. safetensors makes files that their owner alone can read."""
    example = path.with_name(f".{path.name}.umask")
    try:
        example.touch()
        path.chmod(example.stat().st_mode & 0o777)
    finally:
        example.unlink(missing_ok=True)


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
