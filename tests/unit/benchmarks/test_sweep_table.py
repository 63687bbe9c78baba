"""Tests how a sweep compares its variants: by Welch's t-test with the first one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.sweep.table import Outcome, differences_table
from tests.unit.benchmarks.results import make_result


def outcomes(**accuracies: list[float]) -> list[Outcome]:
    """Return a finished run for each accuracy of each variant."""
    found = []
    for name, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            run: Any = SimpleNamespace(name=name, seed=seed, changes=())
            found.append(Outcome(run, "done", Path(name), make_result(test_accuracy=accuracy)))
    return found


def test_each_variant_is_compared_with_the_first():
    """The values are those of `scipy.stats.ttest_ind(…, equal_var=False)`, in points."""
    table = differences_table(
        outcomes(
            plain=[0.940, 0.942, 0.941],
            better=[0.950, 0.953, 0.951],
            close=[0.9415, 0.9400, 0.9430],
            worse=[0.90, 0.91, 0.90],
        )
    )
    assert table is not None
    assert "from plain" in table.title and "t (degrees of freedom)" in table.header
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["better"][0] == "+1.03" and rows["better"][4] == "higher"
    assert rows["worse"][4] == "lower" and rows["worse"][3].startswith("0.0")
    difference, interval, _, _, verdict, needed = rows["close"]
    assert (difference, verdict) == ("+0.05", "not told apart")
    assert interval.startswith("-") and " to +" in interval
    # by hand: variances 1.0 and 2.3333 (in tenths of a point), so t = 10.3333 / sqrt(3.3333 / 3)
    assert rows["better"][2] == "9.80 (3.4)"
    assert int(needed.replace(",", "")) > 50 > int(rows["better"][5])


def test_one_seed_or_one_variant_is_not_compared():
    assert differences_table(outcomes(plain=[0.9], other=[0.91])) is None
    assert differences_table(outcomes(plain=[0.9, 0.91])) is None
    table = differences_table(outcomes(plain=[0.9, 0.91], single=[0.9], other=[0.91, 0.92]))
    assert table is not None and table.rows[0] == ("single", "", "", "", "", "", "")
