"""Runs Python in a process of its own, in the root of the project."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(
    *arguments: str, check: bool = True, timeout: float | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and wait for its end.

    Args:
        check: raise an error if its exit code is not 0.
        timeout: seconds; None: no more than a test may take.
        variables: of its environment, beside those of this process.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=check,
    )
