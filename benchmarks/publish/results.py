"""Make the small table of results on the front page.

The table shows the recipes for CIFAR-10, each beside the highest published accuracy of the same network.
"""

from collections.abc import Sequence

from benchmarks.measure.cells import accuracy, number
from benchmarks.publish import published
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record, newest

RECIPES = (
    "cifar10_davidnet",
    "cifar10_resnet18",
    "cifar10_resnet18_long",
    "cifar10_wrn28",
    *(f"cifar10_resnet{depth}" for depth in (20, 32, 44, 56, 110)),
)
NAME = "results"
_TITLE = (
    "Test accuracy of the last step, one view, mean ± σ (n); seconds without compiling, evaluation and saving"
)
_MARK = "¹"


def chosen(records: Sequence[Record]) -> list[Record]:
    """Return the newest record of each of `RECIPES`; one on the data of the published figure is preferred."""
    ours = [
        record
        for record in newest(records)
        if record.benchmark == "recipe" and record.gpu and record.world_size == 1 and is_current(record)
    ]
    best = []
    for recipe in RECIPES:
        of_recipe = [record for record in reversed(ours) if record.variant == recipe]
        comparable = [record for record in of_recipe if _is_comparable(record)]
        best += (comparable or of_recipe)[:1]
    return best


def markdown(records: Sequence[Record]) -> str:
    """Return the table of `chosen` records with its title, and a note on figures that are not comparable."""
    gpus = sorted({(record.gpu or "").removeprefix("NVIDIA ") for record in records})
    header = ("recipe", "published", "this project", f"seconds on one {' or '.join(gpus)}")
    lines = [header, ("---", "---", "---:", "---:"), *map(_row, records)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    others = sorted({record.data or record.dataset for record in records if not _is_comparable(record)})
    note = f"{_MARK} On {', '.join(others)}, so not comparable with the published figure. " if others else ""
    return f"{_TITLE}.\n\n{table}\n\n{note}"


def _row(record: Record) -> tuple[str, ...]:
    figure = _published(record.variant)
    mark = "" if _is_comparable(record) else f" {_MARK}"
    ours = accuracy(record.accuracy, record.accuracy_std, record.accuracy_n) + mark
    return (
        f"`{record.variant}`",
        f"{figure.accuracy:g} % ({figure.source})" if figure else "",
        ours.replace(" ", "\N{NO-BREAK SPACE}"),  # so that a narrow page does not break the figure
        number(record.train_s, 1) or "not measured",
    )


def _is_comparable(record: Record) -> bool:
    figure = _published(record.variant)
    return figure is None or record.data == figure.data


def _published(recipe: str) -> published.Figure | None:
    """Return the highest published accuracy of the recipe's network."""
    figures = [figure for figure in published.read().figures if figure.recipe == recipe]
    return max(figures, key=lambda figure: figure.accuracy, default=None)
