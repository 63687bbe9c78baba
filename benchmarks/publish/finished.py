"""Reads finished runs of shipped recipes, and checks that they are n measurements of one thing."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.describe import describe_machine
from benchmarks.publish.prices import differences, recipe_path, recipe_paths
from pipeline.atomic_io import read_json
from pipeline.config import Config, FileData, load_config
from pipeline.errors import UserError
from pipeline.run.environment_record import read_environment
from pipeline.run.folder import find_run
from pipeline.run.records import RunResult

# 90th over 10th percentile of images/sec: beyond it, a run shared the machine for some of the time
_MOST_UNSTEADY = 1.5
_STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
_ENVIRONMENT_KEYS = ("command", "packages", "commit")


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        recipe: name of the recipe that it was started with.
        inputs: contents of its input.json.
        environment: contents of its env.json.
    """

    path: Path
    recipe: str
    config: Config
    inputs: dict[str, Any]
    environment: dict[str, Any]
    result: RunResult

    @property
    def conditions(self) -> list[dict[str, Any]]:
        """Processes, code, versions and hardware of the run, and of each process that continued it."""
        environments = [self.environment, *self.environment.get("continued", [])]
        return [{"world_size": e["world_size"], **dict(describe_machine(e))} for e in environments]

    @property
    def was_continued(self) -> bool:
        return bool(self.environment.get("continued"))

    @property
    def streamed(self) -> bool:
        return self.inputs["crop"] is not None

    @property
    def training_s(self) -> float:
        return self.result.train_s - self.result.compile_s


def read_finished(path: Path) -> Finished:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, the run is not finished, or another version wrote one of its files.
    """
    run = find_run(path)
    if not run.result.is_file():
        raise UserError(
            f"{path}: not finished (no result.json in it); continue it with "
            f"{shlex.quote(f'resume={path}')}, or leave it out"
        )
    environment = read_environment(run.environment)
    missing = [key for key in _ENVIRONMENT_KEYS if key not in environment]
    if missing:
        raise UserError(
            f"{run.environment}: lacks {', '.join(missing)}; was it written by another version? Train "
            "the recipe again"
        )
    return Finished(
        path=run.path,
        recipe=_recipe_of(run.path, environment["command"]),
        config=run.read_config(),
        inputs=read_json(run.inputs),
        environment=environment,
        result=RunResult.read(run.result),
    )


def _recipe_of(path: Path, command: Sequence[str]) -> str:
    """Return the recipe that the command names; if it names none, the recipe that named the folder."""
    named = [Path(word).stem for word in command if word.endswith(".yaml") and "=" not in word]
    return named[0] if named else _STAMP.sub("", path.name)


def check_recipe(run: Finished) -> None:
    """Check that a run is one of a shipped recipe.

    Raises:
        UserError: there is no such recipe, or its config is another one; names the keys.
    """
    path = recipe_path(run.recipe)
    if not path.is_file():
        shipped = ", ".join(path.stem for path in recipe_paths())
        raise UserError(f"{run.path}: trained {run.recipe}, which is not in configs/. Shipped: {shipped}")
    different = [
        f"{key}={in_run} (recipe: {in_recipe})"
        for key, (in_recipe, in_run) in differences(path, run.config.model_dump(mode="json")).items()
    ]
    if different:
        raise UserError(
            f"{run.path}: is not configs/{path.name} as it is now: {', '.join(different)}; leave it out, "
            "train it again, or compare variants with `sweep`"
        )
    if run.streamed and not isinstance(load_config(path).data, FileData):
        raise UserError(
            f"{run.path}: its images were streamed from their files, those of configs/{path.name} are kept "
            "in memory; leave it out"
        )


def check_together(runs: Sequence[Finished], *, with_speed: bool = True) -> None:
    """Check that runs of one recipe measure one thing.

    Args:
        runs: all of them.
        with_speed: False if only their accuracy is recorded, which does not depend on the CPU cores.

    Raises:
        UserError: two runs have the same seed, or another commit, machine or data set.
    """
    first = runs[0]
    by_seed: dict[int, Path] = {}
    problems = []
    for run in runs:
        other = by_seed.setdefault(run.config.seed, run.path)
        if other != run.path:
            problems.append(
                f"{run.path}: has seed {run.config.seed}, as {other} has; two runs with one seed are one "
                "measurement: leave one out"
            )
        if run.inputs != first.inputs:
            problems.append(
                f"{run.path}: was trained on other images than {first.path} (input.json differs); record "
                "them one by one"
            )
        problems += _differences_in_conditions(run, first, ignored=() if with_speed else ("cpu_cores",))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def _differences_in_conditions(run: Finished, first: Finished, ignored: Sequence[str]) -> list[str]:
    expected = first.conditions[0]
    problems = []
    for conditions in run.conditions:
        different = [
            f"{key} {value} and not {expected[key]}"
            for key, value in conditions.items()
            if key not in ignored and value != expected[key]
        ]
        if different:
            problems.append(
                f"{run.path}: {', '.join(different)} as in {first.path}; record them one by one, or train "
                "again"
            )
    return problems


def check_speed(runs: Sequence[Finished]) -> None:
    """Check that the runs whose speed is recorded did not share the machine.

    Raises:
        UserError: their speed varied too much.
    """
    speeds = [(run.path, run.result.images_per_sec) for run in runs]
    lowest = [(speed.p10, path) for path, speed in speeds if speed.p10]
    highest = [(speed.p90, path) for path, speed in speeds if speed.p90]
    if not lowest or not highest:
        return
    (low, slowest), (high, fastest) = min(lowest), max(highest)
    if high > _MOST_UNSTEADY * low:
        other = "" if fastest == slowest else f"{fastest} "
        raise UserError(
            f"{slowest}: ran at {low:,.0f} images/sec for a tenth of the time, {other}at {high:,.0f}; did "
            "runs share the machine? Name the run that had the machine to itself with --alone RUN, or give "
            "--shared if none had"
        )
