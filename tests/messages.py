"""Reads the message of an error as the user sees it."""

import pytest


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line on stderr, without "error: "."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
