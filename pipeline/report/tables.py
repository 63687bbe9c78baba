"""Makes the rows of the page's tables, with a column for each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import flatten, leaf_fields
from pipeline.report.figures import (
    ACCURACIES,
    FIGURES,
    UNKNOWN,
    Figure,
    counts_of,
    duration,
    other_accuracy,
)
from pipeline.report.run_record import RunRecord, TestSet
from pipeline.report.series import decimals, letter, number, percent

_NOT_IN_ENVIRONMENT = ("command", "continued")


@dataclass(frozen=True)
class Row:
    """One row of a table with a column for each run.

    Attributes:
        values: text, one for each run.
        default: text of the default; empty if there is none.
        changed: for each run, True if its value is not the default.
        differs: True if the runs differ.
        remarks: for each run, a few words below its value.
        best: for each run, True if no other has a better value; empty if that is not known.
    """

    name: str
    values: list[str]
    meaning: str = ""
    default: str = ""
    changed: tuple[bool, ...] = ()
    differs: bool = False
    remarks: tuple[str, ...] = ()
    best: tuple[bool, ...] = ()


def figures(runs: Sequence[RunRecord]) -> list[Row]:
    """Return the results of the runs, accuracies first; figures that no run has are left out."""
    same_test = not different_tests(runs)
    found = [_row(figure, runs, same_test) for figure in [*ACCURACIES, *_other_accuracies(runs), *FIGURES]]
    return [row for row in found if set(row.values) != {UNKNOWN}]


def _row(figure: Figure, runs: Sequence[RunRecord], same_test: bool) -> Row:
    numbers = [figure.number(run) for run in runs]
    values = [UNKNOWN if value is None else figure.form(value) for value in numbers]
    remarks = ["" if value is None else figure.remark(run) for run, value in zip(runs, numbers, strict=True)]
    best = _best(numbers, values, figure.better) if same_test or not figure.on_test_set else ()
    return Row(figure.name, values, figure.meaning, remarks=tuple(remarks), best=best)


def _best(numbers: Sequence[float | None], values: Sequence[str], better: str) -> tuple[bool, ...]:
    """Return True for each run that has the best value, as it is written; nothing if all have the same."""
    known = [(number, text) for number, text in zip(numbers, values, strict=True) if number is not None]
    if not better or len({text for _, text in known}) < 2:
        return ()
    _, best = max(known) if better == "more" else min(known)
    return tuple(text == best for text in values)


def _other_accuracies(runs: Sequence[RunRecord]) -> list[Figure]:
    """Return each accuracy besides that of the raw weights with one view, named after its views."""
    found = [{} if run.result is None else run.result.evaluation.other_accuracies() for run in runs]
    return [other_accuracy(label) for label in dict.fromkeys(label for values in found for label in values)]


def different_tests(runs: Sequence[RunRecord]) -> str:
    """Return a sentence if the runs were not tested on the same images; otherwise nothing.

    Test sets are told apart by data set, number of images, and the labels in their order.
    """
    sets = [run.tested_on for run in runs]
    known = [of for of in sets if of is not None]
    labels = {of.labels for of in known if of.labels}
    if len({(of.name, of.count) for of in known}) < 2 and len(labels) < 2:
        return ""
    runs_on: dict[TestSet, list[str]] = {}
    for i, of in enumerate(sets):
        if of is not None:
            runs_on.setdefault(of, []).append(letter(i))
    parts = [f"{', '.join(runs)} on {of.count:,} images of {of.name}" for of, runs in runs_on.items()]
    others = "" if len({(of.name, of.count) for of in known}) > 1 else ", with other labels"
    return (
        f"The runs were tested on different test sets: {'; '.join(parts)}{others}. Their accuracies cannot "
        "be compared, so no best accuracy is marked."
    )


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the figures at the top of the page."""
    result, test, rows = run.result, run.metrics.last_test, []
    if test is not None:
        rows.append(("test accuracy", percent(test.accuracy, 2), counts_of(test)))
    if result is None:
        return rows
    speed = result.images_per_sec
    if result.best_test_accuracy is not None:
        remark = f"step {result.best_step:,}, by {result.best_selected_on} accuracy"
        rows.append(("best", percent(result.best_test_accuracy, 2), remark))
    if speed.median:
        rows.append(("images per second", f"{speed.median:,.0f}", f"{speed.p10:,.0f} – {speed.p90:,.0f}"))
    since = "since it was continued" if run.environment.get("continued") else "total"
    rows.append(("training time", duration(result.train_s), f"{duration(result.wall_s)} {since}"))
    count = result.num_parameters
    short = f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
    rows.append(("parameters", short, f"{count:,}, trainable"))
    return rows


def config_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Return the keys that a run has, those that this version does not have included."""
    fields = dict(leaf_fields())
    rows = []
    there = dict.fromkeys(key for run in runs for key in run.values)
    for key in [*(key for key in fields if key in there), *(key for key in there if key not in fields)]:
        values = [_text(run.values[key]) if key in run.values else UNKNOWN for run in runs]
        default, meaning = "", "unknown key in this version"
        if key in fields:
            default, meaning = _text(fields[key].get_default()), fields[key].description or ""
        changed = tuple(value not in (default, UNKNOWN) for value in values)
        rows.append(Row(key, values, meaning, default, changed, len(set(values)) > 1))
    return rows


def environment_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Return hardware, versions and switches; what no run has is left out."""
    flat = [
        flatten({key: value for key, value in run.environment.items() if key not in _NOT_IN_ENVIRONMENT})
        for run in runs
    ]
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [_text(values[key]) if key in values else UNKNOWN for values in flat]
        if set(values) <= {UNKNOWN, "null"}:
            continue
        name = key.removeprefix("packages.").replace("_", " ").replace("gpu.", "GPU ")
        if name.endswith(" bytes"):
            name = name.removesuffix(" bytes")
            values = [_gibibytes(int(text)) if text.isdigit() else text for text in values]
        rows.append(Row(name, values, differs=len(set(values)) > 1))
    return rows


def evaluations(run: RunRecord) -> list[dict[str, str]]:
    """Return all evaluations of a run, a row each."""
    rows = []
    for split, records in run.metrics.evals.items():
        for record in records:
            rows.append(
                {
                    "set": split,
                    "epoch": number(record.epoch),
                    "step": f"{record.step:,}",
                    "loss": UNKNOWN if record.loss is None else decimals(record.loss),
                    "accuracy": percent(record.accuracy, 2),
                    "right": f"{record.correct}/{record.seen}",
                }
            )
    return rows


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    # all digits of a float: if it were rounded, a changed value could look like the default
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
