"""A run folder as its report reads it: whatever is there, and a sentence for each part that is not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import Config, leaf_fields, load_config
from pipeline.config.yaml_reader import read_recipe
from pipeline.errors import UserError
from pipeline.inference.predictions import Predictions
from pipeline.report.curves import Record, read_metrics


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run left behind.

    Attributes:
        name: of its folder.
        values: every key of its config, dotted.
        config: the same, checked; None where it is of another version.
        environment, result: env.json and result.json; empty where missing.
        train, evals: the records of metrics.jsonl, evaluations by split (`holdout`, `test`).
        predictions: on the test set; None where missing.
        problems: sentences on what is missing or cannot be read.
    """

    name: str
    values: dict[str, Any]
    config: Config | None
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    train: list[Record]
    evals: dict[str, list[Record]]
    predictions: Predictions | None
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.result)

    @property
    def last(self) -> Record:
        """The newest record of metrics.jsonl; empty where there is none."""
        records = [*self.train[-1:], *(records[-1] for records in self.evals.values() if records)]
        return max(records, key=lambda record: record.get("step") or 0, default={})


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; parts that are missing or damaged become sentences in `problems`.

    Raises:
        UserError: it holds no `config.yaml`, so it is no run folder.
    """
    recipe = folder / "config.yaml"
    if not recipe.is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml in it)")
    problems: list[str] = []

    def attempt(read: Any, otherwise: Any) -> Any:
        try:
            return read()
        except UserError as error:
            problems.append(str(error))
            return otherwise

    values = {key: field.get_default() for key, field in leaf_fields()}
    values |= attempt(lambda: flatten(read_recipe(recipe).values), {})
    config = attempt(lambda: load_config(recipe), None)
    result, environment = (
        attempt(lambda: _read_json(folder / "result.json"), {}),
        attempt(lambda: _read_json(folder / "env.json"), {}),
    )
    metrics = attempt(lambda: read_metrics(folder / "metrics.jsonl"), [])
    predictions = attempt(lambda: Predictions.load(folder), None)
    train = [record for record in metrics if record.get("kind") == "train"]
    evals = {
        split: [record for record in metrics if record.get("kind") == "eval" and record.get("split") == split]
        for split in ("holdout", "test")
    }
    return RunRecord(
        folder.resolve().name, values, config, environment, result, train, evals, predictions, problems
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key.

    >>> flatten({"seed": 1, "data": {"root": "x"}})
    {'seed': 1, 'data.root': 'x'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
