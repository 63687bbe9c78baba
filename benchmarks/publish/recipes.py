"""Make records of the shipped recipes out of finished runs of them: accuracy over the seeds, speed, seconds of training.

The runs must be the recipe's: one that differs from it in more than where the data lie, the seed, what is logged and
`evaluation.flip_tta` is refused, because the record is a claim about the file in configs/. For variants there is `sweep`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.measure.describe import describe_run
from benchmarks.publish import tables
from benchmarks.publish.finished import Finished, check_recipe, check_speed, check_together, read_finished
from benchmarks.publish.records import Record, Spread, append
from benchmarks.sweep.table import Mean
from pipeline.errors import UserError

_WIDTH = 200  # columns of a table where there is no terminal to ask
_DATA = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn's digits",
    "synthetic": "random images",
}
_OF_THE_FOLDER = ("log.dir=", "log.name=", "resume=")


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
    with_flip = [
        run.result["test_accuracy_flip_tta"] for run in runs if "test_accuracy_flip_tta" in run.result
    ]
    flip = Mean.of(with_flip) if len(with_flip) == len(runs) else None
    timed = [
        run.result for run in alone if run.result["images_per_sec"]["median"]
    ]  # a run of a few steps has no steady window
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
        "images_per_sec": Spread.of([result["images_per_sec"]["median"] for result in timed])
        if timed
        else None,
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
    parser.add_argument(
        "--data", metavar="TEXT", help="what is in the folder of runs with data.dataset=folder"
    )
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--shared", action="store_true", help="runs shared the machine: leave out speed and seconds"
    )
    speed.add_argument(
        "--alone",
        action="append",
        default=[],
        type=Path,
        metavar="RUN",
        help="only this one had it to itself; may be given several times",
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
        print(
            f"{recipe}: {len(runs)} run{'s' * (len(runs) > 1)}, seed{'s' * (len(runs) > 1)} {seeds}; speed of {len(alone)}"
        )
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables.tables_of(records):
        console.print(tables.to_rich(table))
    if options.record:
        for path in append(records):
            print(
                f"recorded in {path}; bring tables and headers up to date with `python -m benchmarks readme`"
            )
    return 0
