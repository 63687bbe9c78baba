"""Reads what the system tells in files, as in /proc and /sys."""

from pathlib import Path


def read_text(path: Path) -> str:
    """Return the text of a file; empty if its process has ended or the system does not have it.

    Names of programs and of control groups are any bytes: those that are no UTF-8 are escaped as in paths.
    """
    try:
        return path.read_text(errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: the path is none
        return ""
