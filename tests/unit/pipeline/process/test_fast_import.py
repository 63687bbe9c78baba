"""Checks `imports_uncollected` in new processes, because it acts once, before torch is imported."""

import pytest

from tests.python import run_python

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
    done = run_python("-W", "error", "-c", _CODE.format(before=before))
    assert done.stdout.splitlines() == [inside, after]
