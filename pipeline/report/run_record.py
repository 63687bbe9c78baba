"""Reads a run folder for its report: all that is there, and one sentence for each part that is not.

This module is the only one of the report that reads metrics.jsonl, result.json and env.json.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.atomic_io import parse_json
from pipeline.config import Config, default_values, exists, flatten
from pipeline.config.yaml_reader import read_recipe
from pipeline.errors import UserError
from pipeline.inference.predictions import Predictions
from pipeline.report.planned_rates import planned_rates
from pipeline.report.series import Rates
from pipeline.run.environment_record import read_environment
from pipeline.run.folder import RunFolder
from pipeline.run.records import EvalRecord, RunResult, Split, TrainRecord

_T = TypeVar("_T")


@dataclass(frozen=True)
class Metrics:
    """The records of metrics.jsonl.

    Attributes:
        train: one for each log window.
        evals: one for each evaluation, by split (`holdout`, `test`).
    """

    train: list[TrainRecord] = field(default_factory=list)
    evals: dict[Split, list[EvalRecord]] = field(default_factory=lambda: {"holdout": [], "test": []})

    @property
    def selected_on(self) -> Split:
        """The split that selects the best step."""
        return "holdout" if self.evals["holdout"] else "test"

    @property
    def last(self) -> TrainRecord | EvalRecord | None:
        """The newest record; None if there is none."""
        newest = [records[-1] for records in (self.train, *self.evals.values()) if records]
        return max(newest, key=lambda record: record.step, default=None)

    def rates_under(self, config: Config | None) -> Rates | None:
        """Return the learning rates of the schedule of a config; None if they are not known."""
        return planned_rates(config, self.train, [record for of in self.evals.values() for record in of])

    @property
    def last_test(self) -> EvalRecord | None:
        """The last evaluation on the test set; None if there is none."""
        return self.evals["test"][-1] if self.evals["test"] else None


@dataclass(frozen=True)
class TestSet:
    """What is known of the test set of a run.

    Attributes:
        name: of the data set.
        count: number of images.
        labels: a hash of the classes, and of the labels in order; empty if they are not known.
    """

    name: str
    count: int
    labels: str


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of one run folder.

    Attributes:
        name: of its folder.
        values: every key of its config, dotted, without those of other kinds.
        config: the same, checked; None if it is of another version.
        environment: env.json; empty if missing.
        result: result.json; None if the run has not finished.
        metrics: metrics.jsonl; empty if missing.
        predictions: on the test set; None if missing.
        problems: one sentence for each part that cannot be read.
    """

    name: str
    values: dict[str, Any]
    config: Config | None
    environment: Mapping[str, Any]
    result: RunResult | None
    metrics: Metrics
    predictions: Predictions | None
    problems: list[str] = field(default_factory=list)

    @property
    def tested_on(self) -> "TestSet | None":
        """The test set of the run; None if nothing was evaluated on it."""
        last = self.metrics.last_test
        if last is None:
            return None
        labels = ""
        if self.predictions is not None:
            names = "\0".join(self.predictions.class_names.tolist())
            content = names.encode(errors="surrogateescape") + self.predictions.labels.tobytes()
            labels = hashlib.sha256(content).hexdigest()
        return TestSet(str(self.values.get("data.dataset")), last.seen, labels)

    @property
    def rates(self) -> Rates | None:
        """The learning rates of the schedule; None if they are not known."""
        return self.metrics.rates_under(self.config)

    @property
    def finished(self) -> bool:
        return self.result is not None


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; parts that are damaged become sentences in `problems`.

    Raises:
        UserError: it holds no `config.yaml`, so it is not a run folder.
    """
    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(f"{folder}: not a run folder (no config.yaml in it)")
    problems: list[str] = []

    def attempt(read: Callable[[], _T], otherwise: _T) -> _T:
        try:
            return read()
        except UserError as error:
            problems.append(str(error))
            return otherwise

    values = default_values()
    values |= attempt(lambda: flatten(read_recipe(run.config).values), {})
    config = attempt(run.read_config, None)
    if config is not None:  # older versions wrote out the keys of all kinds
        values = {key: value for key, value in values.items() if exists(config, key)}
    result = attempt(lambda: RunResult.read(run.result) if run.result.exists() else None, None)
    environment = attempt(lambda: read_environment(run.environment) if run.environment.exists() else {}, {})
    metrics = attempt(lambda: read_metrics(run.metrics), Metrics())
    predictions = attempt(lambda: Predictions.load(folder), None)
    name = folder.resolve().name
    return RunRecord(name, values, config, environment, result, metrics, predictions, problems)


def read_metrics(path: Path) -> Metrics:
    """Read the metrics.jsonl of a run.

    Raises:
        UserError: the file is missing, or a line other than an unfinished last one is not a JSON object.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the folder of a run that has logged something") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); restore the file, or remove it"
        ) from None
    metrics = Metrics()
    for line_number, line in enumerate(lines, start=1):
        try:
            values = parse_json(line.decode())
            if not isinstance(values, dict):
                raise ValueError("not a JSON object")
            if values.get("kind") == "train":
                metrics.train.append(TrainRecord.model_validate(values))
            elif values.get("kind") == "eval":
                record = EvalRecord.model_validate(values)
                metrics.evals[record.split].append(record)
        except ValueError as error:
            if line_number == len(lines):
                break  # the run was killed while it wrote this line
            reason = "not a record of a run" if isinstance(error, ValidationError) else error
            raise UserError(f"{path}: line {line_number}: {reason}; restore or remove that line") from None
    return metrics
