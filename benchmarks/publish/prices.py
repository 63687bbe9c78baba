"""The price of each shipped recipe, in its header: accuracy, speed and seconds, by the newest record of the recipe as it is now."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.cells import accuracy
from benchmarks.publish.records import FOLDER, Record
from pipeline.config import Config, load_config
from pipeline.config.rules import keys_without_effect
from pipeline.errors import UserError
from pipeline.report.run_record import flatten

RECIPES = FOLDER.parent / "configs"
# Where the images lie, where and how a run is written, and what is evaluated besides: a run that differs here alone is the recipe's.
_FREE = (
    *("seed", "resume", "log.", "evaluation.flip_tta", "runtime.hang_timeout_s"),
    *("data.dataset", "data.root", "data.train_list", "data.test_list", "data.class_names", "data.cache_dir"),
)
_WIDTH = 140
_START = "# Price:"
_PRICE = re.compile(r"^# Price:.*\n(?:#.*\n)*", re.MULTILINE)
# without effect on CIFAR-10, but not on a folder of its images that stands in for it
_OF_A_FOLDER = {
    f"data.{key}" for key in ("image_size", "cache_below", "on_bad_image", "train_list", "test_list")
}
_NOT_MEASURED = f"{_START} not measured."


def recipe_path(name: str, recipes: Path = RECIPES) -> Path:
    return recipes / f"{name}.yaml"


def recipe_paths(recipes: Path = RECIPES) -> list[Path]:
    """The shipped recipes."""
    return sorted(recipes.glob("*.yaml"))


def differences(recipe: Path, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which a run is not the recipe's, each with the recipe's value and the run's; none of them without effect in the recipe.

    Args:
        recipe: file, as it is now.
        config: of the run, dumped as JSON. A key that it lacks has its default; one that there is no longer is passed over.
    """
    wanted = load_config(recipe)
    ours, defaults = (flatten(values.model_dump(mode="json")) for values in (wanted, Config()))
    theirs = defaults | flatten(config)
    idle = keys_without_effect(wanted)
    if theirs["data.dataset"] == "folder":
        idle -= _OF_A_FOLDER
    return {
        key: (value, theirs[key])
        for key, value in ours.items()
        if value != theirs[key] and key not in idle and not key.startswith(_FREE)
    }


def is_current(record: Record, recipes: Path = RECIPES) -> bool:
    """Whether the recipe that a record is named after is still the one that was trained."""
    path = recipe_path(record.variant, recipes)
    return path.is_file() and not differences(path, record.config)


def price(name: str, records: Sequence[Record], recipes: Path = RECIPES) -> str:
    """The comment on a recipe's price, one or more lines; of several machines and data sets the newest record.

    A recipe that has changed since it was measured is not measured.
    """
    mine = [
        record
        for record in records
        if record.benchmark == "recipe" and record.variant == name and is_current(record, recipes)
    ]
    if not mine:
        return f"{_NOT_MEASURED}\n"
    newest = max(mine, key=lambda record: record.utc)
    lines = textwrap.wrap(
        _describe(newest), _WIDTH, subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)


def _describe(record: Record) -> str:
    mean = accuracy(record.accuracy, record.accuracy_std, record.accuracy_n).rpartition(" (")[0]
    text = f"{_START} {mean} (n = {record.accuracy_n}, last step, one view, {record.data})"
    machine = record.gpu or f"CPU with {record.cpu_cores} cores"
    on = f"on {'one' if record.world_size == 1 else f'{record.world_size} ×'} {machine}"
    if record.images_per_sec and record.train_s:
        text += f", {record.images_per_sec.median:,.0f} images/sec and {record.train_s:,.1f} s of training"
    changed = " with changes" if record.dirty else ""
    return f"{text} {on}; commit {record.commit[:10] if record.commit else 'unknown'}{changed}."


def render(text: str, records: Sequence[Record], path: Path) -> str:
    """A recipe's text with the price made anew: from `# Price:` to the end of the comment.

    Raises:
        UserError: the recipe has no such line, or several.
    """
    found = _PRICE.findall(text)
    if len(found) != 1:
        raise UserError(
            f"{path}: {len(found)} lines that begin with `{_START}`; end its header with one, such as `{_NOT_MEASURED}`"
        )
    return text.replace(found[0], price(path.stem, records, path.parent))
