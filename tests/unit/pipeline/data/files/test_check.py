"""Checks the tables that `check-data` writes."""

import pytest

from pipeline.data.files import check


@pytest.mark.parametrize(
    ("name", "cell"),
    [("=cmd|calc!A1", "'=cmd|calc!A1"), ("+1", "'+1"), ("-1", "'-1"), ("@a", "'@a"), ("cat", "cat")],
)
def test_a_class_that_looks_like_a_formula(name: str, cell: str):
    assert check._cell(name) == cell
