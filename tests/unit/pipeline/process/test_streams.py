"""Checks that closed, broken, full and narrow output streams end no command."""

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.python import ROOT

COMMAND = [sys.executable, "-m", "pipeline"]


def run(
    arguments: Sequence[str], redirection: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in bash; the code of a pipe is that of its first part."""
    script = f'set -o pipefail; "$@" {redirection}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| true", "| head -1", "2>&1 | true", "2>/dev/full"]
)
def test_output_that_nobody_reads(redirection: str):
    done = run(["config-reference"], redirection)
    assert (done.returncode, done.stderr) == (0, b"")
    assert redirection != "| head -1" or done.stdout.startswith(b"| key |")


@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&-"])
def test_output_that_is_lost_is_a_failure(redirection: str):
    done = run(["config-reference"], redirection)
    assert done.returncode == 1
    assert done.stderr in (b"error: stdout: the output cannot be written (No space left on device)\n", b"")


def test_a_file_is_not_opened_in_place_of_a_closed_stream():
    """What is printed would be written into it."""
    code = (
        "import sys; from pipeline.process.streams import make_streams_safe; make_streams_safe()\n"
        "file = open('/dev/null'); assert file.fileno() > 2; print('heard')\n"
        "assert sys.stdin.read() == ''"
    )
    subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", code], cwd=ROOT, check=True
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"error: caf\xe9\xe9.yaml"),
        ({"PYTHONIOENCODING": "latin-1"}, b"error: caf\xe9\\xe9.yaml"),
        ({"PYTHONIOENCODING": "utf-8"}, "error: caf\u00e9\\xe9.yaml".encode()),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
            "error: caf\u00e9\\xe9.yaml".encode(),
        ),
    ],
)
def test_an_encoding_that_lacks_a_character(environment: dict[str, str], expected: bytes):
    """The name of the recipe is "café" in UTF-8, and one byte that is not UTF-8."""
    done = run(["check", os.fsdecode(b"caf\xc3\xa9\xe9.yaml")], **environment)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(expected)


def test_help_without_docstrings():
    for arguments, expected in ((["-h"], b"Validates a recipe"), (["check", "-h"], b"Validates a recipe")):
        assert expected in run(arguments, PYTHONOPTIMIZE="2").stdout
