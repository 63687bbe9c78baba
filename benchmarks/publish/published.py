"""Accuracies that others published, kept by hand in `published.yaml`, beside those of our recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.measure.cells import accuracy
from benchmarks.publish.prices import is_current, recipe_path
from benchmarks.publish.records import FOLDER, Record, newest
from benchmarks.publish.tables import Table
from pipeline.config.yaml_reader import read_recipe
from pipeline.errors import UserError

FILE = FOLDER / "publish" / "published.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Figure(_Strict):
    """One figure of others.

    Attributes:
        network: as its source calls it.
        accuracy: on the test set, in per cent.
        data: data set.
        how: what one must know to compare it.
        source: where it stands.
        label: short name of the source, for a figure; default: the source up to its first comma.
        recipe: ours of the same network; None where there is none.
    """

    network: str
    accuracy: float = Field(gt=0, lt=100)
    data: str
    how: str
    source: str
    label: str | None = None
    recipe: str | None = None


class Published(_Strict):
    """All of them, and what is to be said of them together."""

    note: str
    figures: tuple[Figure, ...]


def read(path: Path = FILE) -> Published:
    """
    Raises:
        UserError: an entry lacks something, or names a recipe that is not shipped.
    """
    values: dict[str, Any] = read_recipe(path).values
    try:
        published = Published.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for number, figure in enumerate(published.figures):
        if figure.recipe is not None and not recipe_path(figure.recipe).is_file():
            raise UserError(
                f"{path}: figures.{number}.recipe: {figure.recipe} is not in configs/; name a shipped recipe, or remove the key"
            )
    return published


def table(records: Sequence[Record], path: Path = FILE) -> Table:
    """One row a figure, with the newest of our recipe's records on each data set; a recipe that has changed since has none."""
    published = read(path)
    ours = [record for record in newest(records) if record.benchmark == "recipe" and is_current(record)]
    rows = []
    for figure in published.figures:
        same = [record for record in ours if record.variant == figure.recipe]
        rows.append(
            (
                figure.network,
                figure.data,
                figure.how,
                figure.source,
                f"{figure.accuracy:g} %",
                figure.recipe or "",
                "; ".join(f"{accuracy(r.accuracy, r.accuracy_std, r.accuracy_n)} on {r.data}" for r in same),
            )
        )
    header = ("network", "data", "how", "source", "accuracy", "our recipe", "ours, mean ± σ (n)")
    return Table(f"Accuracies of others, beside ours. {published.note}", header, tuple(rows), 4)
