"""Defines tables and their columns, and the columns that several tables of records share.

A table is a list of columns over a list of items. It looks the same on the terminal and, as Markdown, in the
README.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.measure import cells
from benchmarks.publish.records import Record

Align = Literal["left", "right"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Table:
    """Text cells under a header, each column flush left or right."""

    title: str
    header: tuple[str, ...]
    aligns: tuple[Align, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column of a table.

    Attributes:
        name: in the header.
        align: of the cells.
        text: makes the cell of an item.
    """

    name: str
    align: Align
    text: Callable[[Item], str]

    def renamed(self, name: str) -> "Column[Item]":
        return replace(self, name=name)

    def on_the(self, align: Align) -> "Column[Item]":
        return replace(self, align=align)


def make_table(title: str, columns: Sequence[Column[Item]], items: Iterable[Item]) -> Table:
    """Return a table with a row for each item."""
    rows = tuple(tuple(column.text(item) for column in columns) for item in items)
    return Table(title, tuple(c.name for c in columns), tuple(c.align for c in columns), rows)


def to_markdown(table: Table) -> str:
    """Return a GitHub table, without the title."""
    rule = tuple("---" if align == "left" else "---:" for align in table.aligns)
    lines = [table.header, rule, *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_rich(table: Table) -> RichTable:
    """Return a table for the terminal."""
    rich = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for name, align in zip(table.header, table.aligns, strict=True):
        rich.add_column(name, justify=align, overflow="fold")
    for row in table.rows:
        rich.add_row(*(escape(cell) for cell in row))
    return rich


def images_of(record: Record) -> str:
    return f"{record.data or record.dataset} {record.image_size}×{record.image_size}"


VARIANT = Column[Record]("variant", "left", lambda r: r.variant)
MODEL = Column[Record]("model", "left", lambda r: r.model or "")
DATA = Column[Record]("data", "left", images_of)
LOADER = Column[Record]("loader", "left", lambda r: r.loader or "")
PRECISION = Column[Record]("precision", "left", lambda r: r.precision)
LAYOUT = Column[Record]("layout", "left", lambda r: "NHWC" if r.channels_last else "NCHW")
COMPILE = Column[Record]("compile", "left", lambda r: r.compile_mode)
BATCH = Column[Record]("batch", "right", lambda r: str(r.batch_size))
GPUS = Column[Record]("GPUs", "right", lambda r: str(r.world_size))
RATE = Column[Record]("images/sec", "right", lambda r: cells.count(r.rate))
SPREAD = Column[Record]("p10–p90 (n)", "right", lambda r: cells.spread(r.images_per_sec))
STEP_MS = Column[Record]("step ms", "right", lambda r: cells.number(r.step_ms))
DATA_WAIT = Column[Record]("data wait", "right", lambda r: cells.percent(r.data_wait_fraction))
COMPARED = Column[Record]("compared", "right", lambda r: cells.comparison(r.baseline))
COMPILE_S = Column[Record]("compile s", "right", lambda r: cells.number(r.compile_s, 1))
EPOCHS = Column[Record]("epochs", "right", lambda r: cells.number(r.epochs, 0))
ACCURACY = Column[Record](
    "accuracy", "right", lambda r: cells.accuracy(r.accuracy, r.accuracy_std, r.accuracy_n)
)
