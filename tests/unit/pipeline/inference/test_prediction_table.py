"""Tables of predictions: CSV that no spreadsheet computes, and Parquet, read back by other libraries."""

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from scipy.special import softmax

from pipeline.errors import UserError
from pipeline.inference import prediction_table
from pipeline.inference.prediction_table import PredictionTable, check_table_name, harmless

NAMES = ("cat", "=1+1", "b,c")
LOGITS = np.array([[3.0, 0.0, -1.0], [0.0, 8.0, 0.0], [0.0, 0.5, 0.25]], np.float32)
FILES = ["a.png", '=HYPERLINK("x").png', "two\nlines \udce9.png"]


def table(labels: bool = True) -> PredictionTable:
    return PredictionTable(FILES, NAMES, LOGITS, np.array([0, 1, 2]) if labels else None)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", " ="])
def test_what_begins_like_a_formula_gets_an_apostrophe(start: str):
    assert harmless(f"{start}1") == f"'{start}1"
    assert harmless(f"a{start}1") == f"a{start}1"


def test_csv(tmp_path: Path):
    with table().save(tmp_path / "a.csv").open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["index", "file", "true", "predicted", "confidence", "p(cat)", "p(=1+1)", "p(b,c)"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert [row[1] for row in rows] == ["a.png", '\'=HYPERLINK("x").png', "two\\nlines \\xe9.png"]
    assert [row[2:4] for row in rows] == [["cat", "cat"], ["'=1+1", "'=1+1"], ["b,c", "'=1+1"]]
    shares = np.array([[float(cell) for cell in row[5:]] for row in rows], np.float32)
    np.testing.assert_array_equal(shares, softmax(LOGITS.astype(np.float64), axis=1).astype(np.float32))
    assert [float(row[4]) for row in rows] == [pytest.approx(float(share)) for share in shares.max(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_files_without_labels():
    stream = io.StringIO()
    table(labels=False).write_csv(stream)
    assert stream.getvalue().splitlines()[0] == 'file,predicted,confidence,p(cat),p(=1+1),"p(b,c)"'


def test_parquet_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prediction_table, "_ROWS", 2)
    read = parquet.read_table(table().save(tmp_path / "a.parquet"))
    assert read.column_names == table().columns
    assert read["predicted"].to_pylist() == ["cat", "=1+1", "=1+1"]  # no spreadsheet: as it is
    assert read["index"].to_pylist() == [0, 1, 2]
    shares = np.stack([read[name].to_numpy() for name in read.column_names[5:]], axis=1)
    np.testing.assert_allclose(shares, softmax(LOGITS, axis=1), rtol=1e-6)
    assert read["confidence"].to_numpy().tolist() == shares.max(1).tolist()


@pytest.mark.parametrize("name", ["a.xlsx", "a", "file/a.csv"])
def test_a_table_that_cannot_be_written(name: str, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.xlsx|'.*a'|file/a"):
        table().save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find = importlib.util.find_spec

    def without(name: str) -> Any:
        return None if name == "pyarrow" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError, match=r"pip install -e '\.\[parquet\]'"):
        check_table_name(tmp_path / "a.parquet")  # before the work
