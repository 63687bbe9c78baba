"""Checks `imports_uncollected` in new processes, because it acts once, before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]

_CODE = """
import gc, sys
from pipeline.process.fast_import import imports_uncollected
{before}
with imports_uncollected():
    print(gc.isenabled())
    heap = [[] for _ in range(5)]
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    ("before", "inside", "after"),
    [
        ("", "False", "True True"),
        ("gc.disable()", "False", "False False"),
        ("sys.modules['torch'] = None", "True", "True False"),
    ],
    ids=["a fresh process", "one that collects nothing", "one that has torch"],
)
def test_collects_nothing_while_importing(before: str, inside: str, after: str):
    command = [sys.executable, "-W", "error", "-c", _CODE.format(before=before)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [inside, after]
