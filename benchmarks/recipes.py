"""Make records of the shipped recipes out of finished runs of them: accuracy over the seeds, speed, seconds of training.

The runs must be the recipe's: one that differs from it in more than where the data lie, the seed, what is logged and
`evaluation.flip_tta` is refused, because the record is a claim about the file in configs/. For variants there is `sweep`.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import tables
from benchmarks.describe import describe_machine, describe_run
from benchmarks.prices import differences, recipe_path, recipe_paths
from benchmarks.records import Record, Spread, append
from benchmarks.sweep_table import Mean
from pipeline.config import Config, load_config
from pipeline.errors import UserError
from pipeline.run import find_run, read_json

_WIDTH = 200  # columns of a table where there is no terminal to ask
_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "scikit-learn's digits", "synthetic": "random images"}
_MOST_UNSTEADY = 1.5  # 90th over 10th percentile of images/sec: beyond it, runs had the machine to themselves for some of the time only
_STAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")
_OF_THE_FOLDER = ("log.dir=", "log.name=", "resume=")
_NEEDED = ("test_accuracy", "num_parameters", "epochs", "images_per_sec", "step_ms", "train_s", "compile_s", "peak_memory_bytes")


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
        raise UserError(f"{path}: not finished (no result.json in it); go on with resume={path}, or leave it out")
    environment, result, inputs = (read_json(run.path / name) for name in ("env.json", "result.json", "input.json"))
    for name, contents, needed in (("env.json", environment, ("command", "packages", "commit")), ("result.json", result, _NEEDED)):
        missing = [key for key in needed if key not in contents] if isinstance(contents, dict) else list(needed)
        if missing:
            raise UserError(f"{run.path / name}: lacks {', '.join(missing)}; was it written by another version? Train it again")
    return Finished(
        run.path, _recipe_of(run.path, environment["command"]), load_config(run.path / "config.yaml"), inputs, environment, result
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
        f"{key}={theirs} (recipe: {ours})" for key, (ours, theirs) in differences(path, run.config.model_dump(mode="json")).items()
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
            problems.append(f"{run.path}: has seed {run.config.seed}, as {other} has; the same run twice is no second one: leave one out")
        if run.inputs != first.inputs:
            problems.append(f"{run.path}: was trained on other images than {first.path} (input.json differs); record them one by one")
        for machine in run.machines:
            expected = first.machines[0]
            different = [f"{key} {machine[key]} and not {expected[key]}" for key in expected if machine[key] != expected[key]]
            if different:
                problems.append(f"{run.path}: {', '.join(different)} as in {first.path}; record them one by one, or train again")
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))


def check_speed(runs: Sequence[Finished]) -> None:
    """
    Raises:
        UserError: runs whose speed is to be recorded did not have the machine to themselves all the time.
    """
    speeds = {run.path: run.result["images_per_sec"] for run in runs if run.result["images_per_sec"]["median"]}
    if not speeds:
        return
    slowest, fastest = min(speeds, key=lambda path: speeds[path]["p10"]), max(speeds, key=lambda path: speeds[path]["p90"])
    low, high = speeds[slowest]["p10"], speeds[fastest]["p90"]
    if high > _MOST_UNSTEADY * low:
        other = "" if fastest == slowest else f"{fastest} "
        raise UserError(
            f"{slowest}: ran at {low:,.0f} images/sec for a tenth of the time, {other}at {high:,.0f}; did runs share the machine? Say "
            "which had it to itself with --alone RUN, or --shared if none had"
        )


def make_record(runs: Sequence[Finished], alone: Sequence[Finished], data: str) -> Record:
    """One record of runs of a recipe with different seeds.

    Args:
        runs: all, for the accuracy.
        alone: those of them that had the machine to themselves, for the speed; none: it is left out.
        data: what the data set is called.
    """
    first = runs[0]
    accuracy = Mean.of([run.result["test_accuracy"] for run in runs])
    assert accuracy is not None
    with_flip = [run.result["test_accuracy_flip_tta"] for run in runs if "test_accuracy_flip_tta" in run.result]
    flip = Mean.of(with_flip) if len(with_flip) == len(runs) else None
    timed = [run.result for run in alone if run.result["images_per_sec"]["median"]]  # a run of a few steps has no steady window
    # where a run was written says nothing of what it computed, and names folders of one machine
    log = first.config.log.model_copy(update={"dir": "runs", "name": None})
    config = first.config.model_copy(update={"resume": "none", "log": log})
    words = [word for word in first.environment["command"] if not word.startswith(_OF_THE_FOLDER)]
    values = describe_run(config, first.environment, first.streamed) | {
        "benchmark": "recipe",
        "variant": first.recipe,
        "data": data,
        "parameters": first.result["num_parameters"],
        "epochs": first.result["epochs"],
        "seeds": tuple(run.config.seed for run in runs),
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.std,
        "accuracy_n": accuracy.n,
        "flip_tta_accuracy": flip.mean if flip else None,
        "images_per_sec": Spread.of([result["images_per_sec"]["median"] for result in timed]) if timed else None,
        "step_ms": Spread.of([result["step_ms"] for result in timed]).median if timed else None,
        "train_s": Spread.of([run.training_s for run in alone]).median if alone else None,
        "peak_memory_bytes": max(run.result["peak_memory_bytes"] for run in runs),
        "utc": max(run.environment["utc"] for run in runs),
        "command": shlex.join(words),
    }
    return Record(**values)


def _collect(paths: Sequence[Path]) -> dict[tuple[str, str], list[Finished]]:
    """The runs by recipe and data set, in the order of their seeds; all that is wrong with them in one error."""
    groups: dict[tuple[str, str], list[Finished]] = {}
    problems: list[str] = []
    for path in paths:
        try:
            run = read_finished(path)
            check_recipe(run)
            groups.setdefault((run.recipe, run.config.data.dataset), []).append(run)
        except UserError as error:
            problems.append(str(error))
    for group in groups.values():
        group.sort(key=lambda run: run.config.seed)
        try:
            check_together(group)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return groups


def _alone(runs: Sequence[Finished], options: argparse.Namespace) -> list[Finished]:
    """The runs whose speed counts. A continued run's never does: its compiling was timed in the last of its processes alone."""
    named = {Path(path).resolve() for path in options.alone}
    wanted = [] if options.shared else [run for run in runs if not named or run.path.resolve() in named]
    return [run for run in wanted if len(run.machines) == 1]


def _check_options(groups: dict[tuple[str, str], list[Finished]], options: argparse.Namespace) -> None:
    on_folders = [runs[0] for (_, dataset), runs in groups.items() if dataset == "folder"]
    if on_folders and not options.data:
        raise UserError(
            f'{on_folders[0].path}: data.dataset=folder says nothing of what is in it; say it, as in --data "CIFAR-10 re-encoded as JPEG"'
        )
    if options.data and not on_folders:
        raise UserError("--data: none of these runs is on a folder of images; leave it out")
    known = {run.path.resolve() for runs in groups.values() for run in runs}
    unknown = [path for path in options.alone if Path(path).resolve() not in known]
    if unknown:
        raise UserError(f"--alone {unknown[0]}: is none of the runs; name it among them too")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data", metavar="TEXT", help="what is in the folder of runs with data.dataset=folder")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--shared", action="store_true", help="runs shared the machine: leave out speed and seconds")
    speed.add_argument(
        "--alone", action="append", default=[], type=Path, metavar="RUN", help="only this one had it to itself; may be given several times"
    )
    parser.add_argument("--record", action="store_true", help="append the records to benchmarks/results/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Show one row a recipe; with `--record` keep it."""
    options = _parser().parse_args(argv)
    groups = _collect(options.runs)
    _check_options(groups, options)
    records = []
    for (recipe, dataset), runs in groups.items():
        alone = _alone(runs, options)
        check_speed(alone)
        records.append(make_record(runs, alone, _DATA.get(dataset) or options.data))
        seeds = ", ".join(str(run.config.seed) for run in runs)
        print(f"{recipe}: {len(runs)} run{'s' * (len(runs) > 1)}, seed{'s' * (len(runs) > 1)} {seeds}; speed of {len(alone)}")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables.tables_of(records):
        console.print(tables.to_rich(table))
    if options.record:
        for path in append(records):
            print(f"recorded in {path}; bring tables and headers up to date with `python -m benchmarks readme`")
    return 0
