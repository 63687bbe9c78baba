"""Writes the price of each shipped recipe into its header.

The price is accuracy, speed and seconds, by the newest record of the recipe in its present form.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure.cells import accuracy
from benchmarks.publish.records import FOLDER, Record
from pipeline.config import all_values, default_values, flatten, keys_without_effect, load_config
from pipeline.errors import UserError

RECIPES = FOLDER.parent / "configs"
# The place of the images, the place and form of the output, and further evaluations: a run may differ here
# and is still one of the recipe.
_FREE_KEYS = (
    *("seed", "resume", "log.", "evaluation.", "runtime.hang_timeout_s"),
    *("data.dataset", "data.root", "data.train_folder", "data.test_folder", "data.train_list"),
    *("data.test_list", "data.class_names", "data.cache_dir"),
    *("data.train_shards", "data.test_shards", "data.image_key", "data.label_key"),
)
_WIDTH = 140
_START = "# Price:"
_PRICE = re.compile(r"^# Price:.*\n(?:#.*\n)*", re.MULTILINE)
# without effect on CIFAR-10, but with effect on a folder of images that replaces it
_FOLDER_KEYS = {
    f"data.{key}"
    for key in (
        *("image_size", "cache_below", "on_bad_image"),
        *("train_folder", "test_folder", "classes", "train_list", "test_list"),
    )
}
_NOT_MEASURED = f"{_START} not measured."


def recipe_path(name: str, recipes: Path = RECIPES) -> Path:
    return recipes / f"{name}.yaml"


def recipe_paths() -> list[Path]:
    """Return the shipped recipes."""
    return sorted(RECIPES.glob("*.yaml"))


def differences(recipe: Path, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the keys in which a run differs from a recipe, each with the value of the recipe and of the run.

    Keys without effect in the recipe are left out.

    Args:
        recipe: file, as it is now.
        config: of the run, dumped as JSON. A missing key has its default; a key that no longer exists is
            ignored.
    """
    current = load_config(recipe)
    in_recipe, in_run = all_values(current), default_values() | flatten(config)
    idle = keys_without_effect(current)
    if in_run["data.dataset"] in ("folder", "shards"):
        idle -= _FOLDER_KEYS
    return {
        key: (value, in_run[key])
        for key, value in in_recipe.items()
        if value != in_run[key] and key not in idle and not key.startswith(_FREE_KEYS)
    }


def is_current(record: Record, recipes: Path = RECIPES) -> bool:
    """Return True if the recipe of a record has not changed since it was trained."""
    path = recipe_path(record.variant, recipes)
    return path.is_file() and not differences(path, record.config)


def price(name: str, records: Sequence[Record], recipes: Path = RECIPES) -> str:
    """Return the comment with a recipe's price, one or more lines.

    It is that of the newest record, of any machine and data set. If the recipe has changed since it was
    measured, the comment says that it is not measured.
    """
    current = [
        record
        for record in records
        if record.benchmark == "recipe" and record.variant == name and is_current(record, recipes)
    ]
    if not current:
        return f"{_NOT_MEASURED}\n"
    newest = max(current, key=lambda record: record.utc)
    lines = textwrap.wrap(
        _describe(newest), _WIDTH, subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)


def _describe(record: Record) -> str:
    mean = accuracy(record.accuracy, record.accuracy_std, record.accuracy_n).rpartition(" (")[0]
    text = f"{_START} {mean} (n = {record.accuracy_n}, last step, one view, {record.data})"
    machine = record.gpu or f"CPU with {record.cpu_cores} cores"
    count = "one" if record.world_size == 1 else f"{record.world_size} ×"
    if record.images_per_sec and record.train_s:
        text += f", {record.images_per_sec.median:,.0f} images/sec and {record.train_s:,.1f} s of training"
    commit = record.commit[:10] if record.commit else "unknown"
    changed = " with changes" if record.dirty else ""
    return f"{text} on {count} {machine}; commit {commit}{changed}."


def render(text: str, records: Sequence[Record], path: Path) -> str:
    """Return a recipe's text with a new price: from `# Price:` to the end of the comment.

    Raises:
        UserError: the recipe has no such line, or several.
    """
    prices = _PRICE.findall(text)
    if len(prices) != 1:
        raise UserError(
            f"{path}: {len(prices)} lines that begin with `{_START}`; end its header with one, such as "
            f"`{_NOT_MEASURED}`"
        )
    return text.replace(prices[0], price(path.stem, records, path.parent))
