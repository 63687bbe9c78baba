"""Finished runs of shipped recipes: read from their folders, and whether they are n measurements of one thing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.describe import describe_machine
from benchmarks.publish.prices import differences, recipe_path, recipe_paths
from pipeline.atomic_io import read_json
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.run.folder import find_run

_MOST_UNSTEADY = 1.5  # 90th over 10th percentile of images/sec: beyond it, runs had the machine to themselves for some of the time only
_STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
_NEEDED = (
    "test_accuracy",
    "num_parameters",
    "epochs",
    "images_per_sec",
    "step_ms",
    "train_s",
    "compile_s",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        recipe: name of the recipe that it was started with.
        inputs: contents of its input.json.
        environment: contents of its env.json.
        result: contents of its result.json.
    """

    path: Path
    recipe: str
    config: Config
    inputs: dict[str, Any]
    environment: dict[str, Any]
    result: dict[str, Any]

    @property
    def machines(self) -> list[dict[str, Any]]:
        """What it ran on, and once more for each time that it was continued."""
        environments = [self.environment, *self.environment.get("continued", [])]
        return [{"world_size": e["world_size"], **describe_machine(e)} for e in environments]

    @property
    def streamed(self) -> bool:
        return self.inputs["crop"] is not None

    @property
    def training_s(self) -> float:
        return self.result["train_s"] - self.result["compile_s"]


def read_finished(path: Path) -> Finished:
    """Read a run folder.

    Raises:
        UserError: it is none, the run is not finished, or a file is not as a run of today writes it.
    """
    run = find_run(path)
    if not run.result.is_file():
        raise UserError(
            f"{path}: not finished (no result.json in it); go on with resume={path}, or leave it out"
        )
    environment, result, inputs = (
        read_json(run.path / name) for name in ("env.json", "result.json", "input.json")
    )
    for name, contents, needed in (
        ("env.json", environment, ("command", "packages", "commit")),
        ("result.json", result, _NEEDED),
    ):
        missing = (
            [key for key in needed if key not in contents] if isinstance(contents, dict) else list(needed)
        )
        if missing:
            raise UserError(
                f"{run.path / name}: lacks {', '.join(missing)}; was it written by another version? Train it again"
            )
    return Finished(
        run.path,
        _recipe_of(run.path, environment["command"]),
        load_config(run.path / "config.yaml"),
        inputs,
        environment,
        result,
    )


def _recipe_of(path: Path, command: Sequence[str]) -> str:
    """The recipe that the command names; where it names none, what the folder is called after."""
    named = [Path(word).stem for word in command if word.endswith(".yaml") and "=" not in word]
    return named[0] if named else _STAMP.sub("", path.name)


def check_recipe(run: Finished) -> None:
    """
    Raises:
        UserError: there is no such recipe, or the run is not the recipe's; names the keys.
    """
    path = recipe_path(run.recipe)
    if not path.is_file():
        shipped = ", ".join(path.stem for path in recipe_paths())
        raise UserError(f"{run.path}: trained {run.recipe}, which is not in configs/. Shipped: {shipped}")
    different = [
        f"{key}={theirs} (recipe: {ours})"
        for key, (ours, theirs) in differences(path, run.config.model_dump(mode="json")).items()
    ]
    if different:
        raise UserError(
            f"{run.path}: is not configs/{path.name} as it is now: {', '.join(different)}; leave it out, train it again, or compare "
            "variants with `sweep`"
        )
    if run.streamed and load_config(path).data.dataset != "folder":
        raise UserError(
            f"{run.path}: its images were streamed from their files, those of configs/{path.name} are kept in memory; leave it out"
        )


def check_together(runs: Sequence[Finished]) -> None:
    """
    Raises:
        UserError: runs of one recipe are not n measurements of one thing: two have the same seed, or another commit, machine or data set.
    """
    first = runs[0]
    seeds: dict[int, Path] = {}
    problems = []
    for run in runs:
        other = seeds.setdefault(run.config.seed, run.path)
        if other != run.path:
            problems.append(
                f"{run.path}: has seed {run.config.seed}, as {other} has; the same run twice is no second one: leave one out"
            )
        if run.inputs != first.inputs:
            problems.append(
                f"{run.path}: was trained on other images than {first.path} (input.json differs); record them one by one"
            )
        for machine in run.machines:
            expected = first.machines[0]
            different = [
                f"{key} {machine[key]} and not {expected[key]}"
                for key in expected
                if machine[key] != expected[key]
            ]
            if different:
                problems.append(
                    f"{run.path}: {', '.join(different)} as in {first.path}; record them one by one, or train again"
                )
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def check_speed(runs: Sequence[Finished]) -> None:
    """
    Raises:
        UserError: runs whose speed is to be recorded did not have the machine to themselves all the time.
    """
    speeds = {
        run.path: run.result["images_per_sec"] for run in runs if run.result["images_per_sec"]["median"]
    }
    if not speeds:
        return
    slowest, fastest = (
        min(speeds, key=lambda path: speeds[path]["p10"]),
        max(speeds, key=lambda path: speeds[path]["p90"]),
    )
    low, high = speeds[slowest]["p10"], speeds[fastest]["p90"]
    if high > _MOST_UNSTEADY * low:
        other = "" if fastest == slowest else f"{fastest} "
        raise UserError(
            f"{slowest}: ran at {low:,.0f} images/sec for a tenth of the time, {other}at {high:,.0f}; did runs share the machine? Say "
            "which had it to itself with --alone RUN, or --shared if none had"
        )
