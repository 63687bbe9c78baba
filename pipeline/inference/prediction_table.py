"""Writes predictions with the probabilities of all classes as CSV or Parquet."""

import contextlib
import csv
import importlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy.special import softmax

from pipeline.atomic_io import flush_to_disk
from pipeline.data.files.paths import printable
from pipeline.errors import UserError

SUFFIXES = (".csv", ".parquet")
_ROWS = 4096  # in memory at once, as text or as columns
# what makes a spreadsheet compute a cell, full-width forms included
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def harmless(cell: str) -> str:
    """Return a text that no spreadsheet takes for a formula: what begins like one gets an apostrophe.

    >>> harmless("=HYPERLINK(1)"), harmless("cat.png")
    ("'=HYPERLINK(1)", 'cat.png')
    """
    return f"'{cell}" if cell.lstrip(" ").startswith(_FORMULA_STARTS) else cell


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """The predictions for N images of K classes.

    Attributes:
        files: (N) names of the files; empty for images that have none.
        class_names: (K) in the order of the logits.
        logits: (N, K) float32.
        labels: (N,) integer, the true classes; None if they are not known.
    """

    files: Sequence[str]
    class_names: Sequence[str]
    logits: np.ndarray
    labels: np.ndarray | None = None

    @property
    def columns(self) -> list[str]:
        """Names: `file`, `predicted`, `confidence`, `p(CLASS)`…; `index` and `true` if classes are known."""
        shares = [f"p({name})" for name in self.class_names]
        known = ([], []) if self.labels is None else (["index"], ["true"])
        return [*known[0], "file", *known[1], "predicted", "confidence", *shares]

    def write_csv(self, stream: TextIO) -> None:
        """Write a header and a line for each image. A text that begins like a formula gets an apostrophe."""
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([harmless(printable(name)) for name in self.columns])
        for columns in self._chunks():
            cells = [_as_text(values) for values in columns]
            writer.writerows(zip(*cells, strict=True))

    def write_parquet(self, path: Path) -> None:
        """Write a Parquet file with the same columns; texts are as they are."""
        pa: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
        texts = ("file", "true", "predicted")
        kinds = {name: pa.string() for name in texts} | {"index": pa.int64()}
        schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in self.columns])
        with parquet.ParquetWriter(path, schema) as writer:
            for columns in self._chunks():
                writer.write_table(pa.table([pa.array(values) for values in columns], schema=schema))

    def save(self, path: Path) -> Path:
        """Write a file, whole or not at all, as its suffix says.

        Raises:
            UserError: another suffix than .csv or .parquet, a missing package, or a file that cannot be
                written.
        """
        check_table_name(path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() == ".parquet":
                self.write_parquet(temporary)
            else:
                with temporary.open("w", encoding="utf-8", newline="") as stream:
                    self.write_csv(stream)
            flush_to_disk(temporary)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
        finally:
            with contextlib.suppress(NotADirectoryError):
                temporary.unlink(missing_ok=True)
        return path

    def _chunks(self) -> Iterator[list[Any]]:
        """Yield the columns of some rows: lists of texts, and arrays of numbers."""
        names = np.array([printable(name) for name in self.class_names], dtype=object)
        for start in range(0, len(self.logits), _ROWS):
            rows = slice(start, start + _ROWS)
            shares = softmax(self.logits[rows].astype(np.float64), axis=1).astype(np.float32)
            predicted = self.logits[rows].argmax(1)
            files = [printable(name) for name in self.files[rows]]
            known: tuple[list[Any], list[Any]] = ([], [])
            if self.labels is not None:
                known = [np.arange(start, start + len(shares))], [names[self.labels[rows]].tolist()]
            yield [*known[0], files, *known[1], names[predicted].tolist(), shares.max(1), *shares.T]


def check_table_name(path: Path) -> None:
    """Check the suffix of a table's file, and that the package for it is there.

    Raises:
        UserError: it is none of .csv and .parquet, or pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{os.fspath(path)!r}: is no .csv and no .parquet file; end its name with one of them"
        )
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path}: Parquet needs the package pyarrow; pip install -e '.[parquet]', or name a .csv file"
        )


def _as_text(values: Any) -> list[str]:
    """Return a column as texts: numbers with as many digits as tell two float32 apart."""
    if isinstance(values, np.ndarray):
        return [str(value) for value in values.tolist()] if values.dtype.kind == "i" else _digits(values)
    return [harmless(value) for value in values]


def _digits(values: np.ndarray) -> list[str]:
    return [f"{value:.9g}" for value in values.tolist()]
