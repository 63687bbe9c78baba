"""Several runs side by side: the best of each row, and runs that were tested on different images."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.run_record import read_run
from pipeline.report.tables import Row, figures
from tests.unit.pipeline.report.pages import RESULT, make_run, metrics, page_of, predictions


def row_of(name: str, *runs: Path) -> Row:
    return next(row for row in figures([read_run(run) for run in runs]) if row.name == name)


def test_the_best_value_of_each_row_is_marked(tmp_path: Path):
    first, second, third = (
        make_run(tmp_path, name, result={**RESULT, **changes})
        for name, changes in (
            ("a", {"test_loss": 0.9}),
            ("b", {"test_loss": 0.5, "train_s": 1.0, "num_parameters": 5}),
            ("c", {"test_loss": 0.50001, "train_s": 2000.0}),
        )
    )
    runs = (first, second, third)
    assert row_of("test loss", *runs).best == (False, True, True)  # equal as they are written
    assert row_of("training time", *runs).best == (False, True, False)  # the least
    assert row_of("images per second", *runs).best == ()  # all the same
    assert row_of("parameters", *runs).best == ()  # neither more nor less is better
    names = [row.name for row in figures([read_run(run) for run in runs])]
    assert names[:2] == ["test accuracy", "best test accuracy"]
    page = page_of(*runs)
    assert "★" in page.words and 'class="best"' in page.source
    assert row_of("test accuracy", first).remarks == ("9 of 12",)


def test_the_higher_accuracy_is_the_better_one(tmp_path: Path):
    better = [record if record["kind"] == "train" else {**record, "accuracy": 0.99} for record in metrics()]
    runs = make_run(tmp_path, "a"), make_run(tmp_path, "b", metrics=better)
    assert row_of("test accuracy", *runs).best == (False, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"config": {"data": {"dataset": "cifar10"}}},
            "A, C on 12 images of digits; B on 12 images of cifar10.",
        ),
        (
            {"predictions": "other labels"},
            "A, C on 12 images of digits; B on 12 images of digits, with other labels.",
        ),
        ({"metrics": "more images"}, "A, C on 12 images of digits; B on 24 images of digits."),
    ],
    ids=["data set", "labels", "count"],
)
def test_different_test_sets_are_told_and_not_compared(changes: dict[str, Any], words: str, tmp_path: Path):
    if "predictions" in changes:
        labels = predictions().labels[::-1].copy()
        changes = {"predictions": replace(predictions(), labels=labels)}
    if "metrics" in changes:
        seen = {"seen": 24, "accuracy": 0.25}
        changes = {
            "metrics": [{**record, **(seen if record["kind"] == "eval" else {})} for record in metrics()]
        }
    runs = (
        make_run(tmp_path, "a"),
        make_run(tmp_path, "b", result={**RESULT, "test_loss": 9.0, "train_s": 1.0}, **changes),
    )
    third = make_run(tmp_path, "c")
    page = page_of(*runs, third)
    assert "The runs were tested on different test sets" in page.words and words in page.words
    assert row_of("test loss", *runs).best == row_of("test accuracy", *runs).best == ()
    assert row_of("training time", *runs).best == (False, True)  # speeds are still compared
    same = page_of(runs[0], third)
    assert "different test sets" not in same.words


def test_remarks_below_figures_may_wrap(tmp_path: Path):
    """On one line, those of six runs are wider than a page, and the last run is out of sight."""
    page = page_of(make_run(tmp_path, "a"), make_run(tmp_path, "b"))
    assert re.search(r"\ntd small {[^}]*white-space: normal", page.source)
