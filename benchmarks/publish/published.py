"""Compares accuracies that others published, kept by hand in `published.yaml`, with those of our recipes."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from benchmarks.measure.cells import accuracy
from benchmarks.publish.columns import Column, Table, make_table
from benchmarks.publish.prices import is_current, recipe_path
from benchmarks.publish.records import FOLDER, Record, newest
from benchmarks.publish.strict import Strict
from pipeline.config.yaml_reader import read_recipe
from pipeline.errors import UserError

FILE = FOLDER / "publish" / "published.yaml"


class Figure(Strict):
    """One published accuracy.

    Attributes:
        network: as its source calls it.
        accuracy: on the test set, in per cent.
        data: data set.
        how: facts that a comparison needs: epochs, batch size, augmentation.
        source: document and place in it.
        label: short name of the source, for a figure; default: the source up to its first comma.
        recipe: our recipe of the same network, if there is one.
    """

    network: str
    accuracy: float = Field(gt=0, lt=100)
    data: str
    how: str
    source: str
    label: str | None = None
    recipe: str | None = None


class Published(Strict):
    """All published accuracies."""

    figures: tuple[Figure, ...]


def read(path: Path = FILE) -> Published:
    """Read and check the file.

    Raises:
        UserError: an entry lacks a key, or names a recipe that is not shipped.
    """
    try:
        published = Published.model_validate(read_recipe(path).values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for number, figure in enumerate(published.figures):
        if figure.recipe is not None and not recipe_path(figure.recipe).is_file():
            raise UserError(
                f"{path}: figures.{number}.recipe: {figure.recipe} is not in configs/; name a shipped "
                "recipe, or remove the key"
            )
    return published


def table(records: Sequence[Record], path: Path = FILE) -> Table:
    """Return one row a figure, with the newest record of our recipe on each data set.

    A recipe that has changed since it was measured has none.
    """
    published = read(path)
    current = [record for record in newest(records) if record.benchmark == "recipe" and is_current(record)]

    def ours(figure: Figure) -> str:
        same = [record for record in current if record.variant == figure.recipe]
        return "; ".join(f"{accuracy(r.accuracy, r.accuracy_std, r.accuracy_n)} on {r.data}" for r in same)

    columns = [
        Column[Figure]("network", "left", lambda figure: figure.network),
        Column[Figure]("data", "left", lambda figure: figure.data),
        Column[Figure]("how", "left", lambda figure: figure.how),
        Column[Figure]("source", "left", lambda figure: figure.source),
        Column[Figure]("accuracy", "right", lambda figure: f"{figure.accuracy:g} %"),
        Column[Figure]("our recipe", "right", lambda figure: figure.recipe or ""),
        Column[Figure]("ours, mean ± σ (n)", "right", ours),
    ]
    return make_table("Accuracies of others, beside ours", columns, published.figures)
