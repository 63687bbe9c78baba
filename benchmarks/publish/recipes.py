"""Make records of the shipped recipes out of finished runs of them: accuracy, speed, seconds of training.

The runs must be those of the recipe. A run may differ from it in the place of the data, the seed, the logging
and the test-time views (`evaluation.*`), and in nothing else, because the record is a claim about the file in
configs/. To compare variants, use `sweep`.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.measure.describe import describe_config, describe_machine
from benchmarks.publish import columns, tables
from benchmarks.publish.finished import Finished, check_recipe, check_speed, check_together, read_finished
from benchmarks.publish.records import Record, Setting, Spread, append
from benchmarks.sweep.table import Mean
from pipeline.errors import UserError

_ABOUT = (
    "Make records of the shipped recipes out of finished runs of them. A run may differ from its "
    "recipe in the place of the data, the seed, log.* and evaluation.* alone."
)
_WIDTH = 200  # columns of a table without a terminal
DATA_NAMES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn's digits",
    "synthetic": "random images",
}
_PLACE_KEYS = ("log.dir=", "log.name=", "resume=")
Groups = dict[tuple[str, str], list[Finished]]  # by recipe and data set


def make_record(runs: Sequence[Finished], alone: Sequence[Finished], data: str) -> Record:
    """Return one record of runs of a recipe with different seeds.

    Args:
        runs: all of them, for the accuracy.
        alone: the runs that had the machine to themselves, for the speed; without any the speed is left out.
        data: name of the data set.
    """
    first, results, views = runs[0], [run.result for run in runs], _shared_views(runs)
    accuracy = Mean.of([result.test_accuracy for result in results])
    assert accuracy is not None
    # a run of a few steps has no steady window
    speeds = [run.result.images_per_sec.median for run in alone if run.result.images_per_sec.median]
    step_ms = [run.result.step_ms for run in alone if run.result.step_ms]
    return Record(
        benchmark="recipe",
        variant=first.recipe,
        **dict(_describe_setting(first)),
        **dict(describe_machine(first.environment)),
        data=data,
        parameters=first.result.num_parameters,
        epochs=first.result.epochs,
        seeds=tuple(run.config.seed for run in runs),
        accuracy=accuracy.mean,
        accuracy_std=accuracy.std,
        accuracy_n=accuracy.n,
        flip_tta_accuracy=_mean_of_all([run.result.test_accuracy_flip_tta for run in runs]),
        views=views,
        views_accuracy=_mean_of_all([run.result.test_accuracy_views.get(views or "") for run in runs]),
        images_per_sec=Spread.of(speeds) if speeds else None,
        step_ms=Spread.of(step_ms).median if step_ms else None,
        train_s=Spread.of([run.training_s for run in alone]).median if alone else None,
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        utc=max(run.environment["utc"] for run in runs),
        command=shlex.join(w for w in first.environment["command"] if not w.startswith(_PLACE_KEYS)),
    )


def _describe_setting(run: Finished) -> Setting:
    """Return the config's fields without the place of the run, which names folders of one machine."""
    log = run.config.log.model_copy(update={"dir": "runs", "name": None})
    config = run.config.model_copy(update={"resume": "none", "log": log})
    return describe_config(config, run.environment, run.streamed)


def _shared_views(runs: Sequence[Finished]) -> str | None:
    """Return the name of the test-time views that all runs have in common; None if there are none."""
    return min(set.intersection(*(set(run.result.test_accuracy_views) for run in runs)), default=None)


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the mean; None if a value is missing."""
    known = [value for value in values if value is not None]
    mean = Mean.of(known) if len(known) == len(values) else None
    return mean.mean if mean else None


def _collect(paths: Sequence[Path], *, with_speed: bool) -> Groups:
    """Return the runs by recipe and data set, in the order of their seeds.

    Args:
        paths: folders of the runs.
        with_speed: True if speed and seconds may be recorded too; then the CPU cores must be equal.

    Raises:
        UserError: all problems of the runs, one line each.
    """
    groups: Groups = {}
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
            check_together(group, with_speed=with_speed)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return groups


def _select_alone(runs: Sequence[Finished], options: argparse.Namespace) -> list[Finished]:
    """Return the runs whose speed counts.

    The speed of a continued run never does: its compile time is that of its last process alone.
    """
    named = {Path(path).resolve() for path in options.alone}
    selected = [] if options.shared else [run for run in runs if not named or run.path.resolve() in named]
    return [run for run in selected if not run.was_continued]


def _check_options(groups: Groups, options: argparse.Namespace) -> None:
    on_files = [(of, runs[0]) for (_, of), runs in groups.items() if of in ("folder", "shards")]
    if on_files and not options.data:
        kind, run = on_files[0]
        raise UserError(
            f"{run.path}: data.dataset={kind} does not name the images in the folder; name them, as in "
            "--data CIFAR-10"
        )
    if options.data and not on_files:
        raise UserError("--data: none of these runs is on a folder of images; leave it out")
    known = {run.path.resolve() for runs in groups.values() for run in runs}
    unknown = [path for path in options.alone if Path(path).resolve() not in known]
    if unknown:
        raise UserError(f"--alone {unknown[0]}: is none of the runs; add it to the runs, too")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks recipes", description=_ABOUT)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--data", metavar="TEXT", help="the images of runs on a folder or on shards")
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
        help="only this run had the machine to itself; may be given several times",
    )
    parser.add_argument("--record", action="store_true", help="append the records to benchmarks/results/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Show one row a recipe; with `--record` keep it."""
    options = _parser().parse_args(argv)
    groups = _collect(options.runs, with_speed=not options.shared)
    _check_options(groups, options)
    records = []
    for (recipe, dataset), runs in groups.items():
        alone = _select_alone(runs, options)
        check_speed(alone)
        records.append(make_record(runs, alone, DATA_NAMES.get(dataset) or options.data))
        seeds, plural = ", ".join(str(run.config.seed) for run in runs), "s" * (len(runs) > 1)
        print(f"{recipe}: {len(runs)} run{plural}, seed{plural} {seeds}; speed of {len(alone)}")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    for table in tables.tables_of(records):
        console.print(columns.to_rich(table))
    if options.record:
        for path in append(records):
            print(f"recorded in {path}; update tables and headers with `python -m benchmarks readme`")
    return 0
