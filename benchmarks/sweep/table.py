"""Summarises the runs of a sweep: mean ± standard deviation (n) over the seeds of each variant."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from benchmarks.measure import cells
from benchmarks.measure.t_tests import ALPHA, Difference, welch
from benchmarks.publish.columns import Column, Table, make_table, to_markdown
from benchmarks.sweep.plan import Plan, Run
from pipeline.atomic_io import read_json, write_json
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult

Status = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """State of a run of a sweep.

    Attributes:
        folder: of the finished run.
        result: of the finished run.
        reason: message of a failed run.
        jobs: runs at a time when it was trained.
    """

    run: Run
    status: Status = "waiting"
    folder: Path | None = None
    result: RunResult | None = None
    reason: str = ""
    jobs: int = 1

    def with_status(self, status: Status, reason: str = "") -> "Outcome":
        return replace(self, status=status, reason=reason)


@dataclass(frozen=True)
class Mean:
    """Mean of n values and their standard deviation (with n - 1; None if n is 1)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean | None":
        """Return the mean; None of no values.

        >>> Mean.of([1.0, 3.0])
        Mean(mean=2.0, std=1.4142135623730951, n=2)
        """
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None

    def text(self, scale: float, digits: int) -> str:
        deviation = f" ± {scale * self.std:,.{digits}f}" if self.std is not None else ""
        return f"{scale * self.mean:,.{digits}f}{deviation} ({self.n})"


@dataclass(frozen=True)
class Scores:
    """Figures of finished runs; None if no run has the figure.

    Attributes:
        accuracy: on the test set, a fraction.
        images_per_sec: of the medians of the runs.
        train_s: seconds of training.
    """

    accuracy: Mean | None
    images_per_sec: Mean | None
    train_s: Mean | None

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> "Scores":
        results = [outcome.result for outcome in outcomes if outcome.result]
        rates = [result.images_per_sec.median for result in results]
        return cls(
            Mean.of([result.test_accuracy for result in results]),
            Mean.of([rate for rate in rates if rate]),
            Mean.of([result.train_s for result in results]),
        )


@dataclass(frozen=True)
class Variant:
    """All runs of one variant: a row of the table."""

    name: str
    outcomes: Sequence[Outcome]

    @property
    def changes(self) -> str:
        return " ".join(self.outcomes[0].run.changes) or "–"

    @property
    def scores(self) -> Scores:
        return Scores.of(self.outcomes)

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each finished run, a fraction."""
        return [outcome.result.test_accuracy for outcome in self.outcomes if outcome.result]

    @property
    def state(self) -> str:
        """Number of runs in each state; empty if all are done."""
        statuses = [outcome.status for outcome in self.outcomes]
        counts = {status: statuses.count(status) for status in ("running", "waiting", "stopped", "failed")}
        return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def find_finished(plan: Plan, run: Run) -> Outcome:
    """Return a finished run of the same name, seed and config in the sweep's folder; else one that waits."""
    for path in sorted(plan.folder.glob(f"{run.key}-*/result.json"), reverse=True):
        if RunFolder(path.parent).is_finished:  # a damaged result is written again by a resume
            return Outcome(run, "done", path.parent, RunResult.read(path))
    return Outcome(run)


def by_variant(outcomes: Sequence[Outcome]) -> list[Variant]:
    """Return the variants in the order of their first runs."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.run.name, []).append(outcome)
    return [Variant(name, group) for name, group in grouped.items()]


def read_jobs(plan: Plan) -> dict[str, int]:
    """Return the number of runs at a time, by the folders of the runs in `results.json`."""
    path = plan.folder / "results.json"
    saved = read_json(path)["runs"] if path.is_file() else []
    return {run["folder"]: run.get("jobs", 1) for run in saved}


def table_of(plan: Plan, outcomes: Sequence[Outcome]) -> Table:
    """Return one row for each variant: its changes, its figures, and its state unless all runs are done."""
    variants = by_variant(outcomes)
    columns = [
        Column[Variant]("run", "left", lambda variant: variant.name),
        Column[Variant]("changes", "left", lambda variant: variant.changes),
        Column[Variant]("test accuracy %", "right", lambda v: _text(v.scores.accuracy, 100, 2)),
        Column[Variant]("images/sec", "right", lambda v: _text(v.scores.images_per_sec, 1, 0)),
        Column[Variant]("train s", "right", lambda v: _text(v.scores.train_s, 1, 1)),
    ]
    if any(variant.state for variant in variants):
        columns.append(Column[Variant]("state", "right", lambda variant: variant.state))
    title = f"{plan.name}: {plan.base}, mean ± standard deviation (n)"
    jobs = max(outcome.jobs for outcome in outcomes)
    if jobs > 1:
        title += f"; {jobs} at a time, which share the machine: the speeds are not those of one alone"
    return make_table(title, columns, variants)


@dataclass(frozen=True)
class Comparison:
    """A variant beside the first one; None if one of them has fewer than two finished runs, or no spread."""

    variant: Variant
    difference: Difference | None

    @property
    def verdict(self) -> str:
        if self.difference is None:
            return ""
        if self.difference.p < ALPHA:
            return "higher" if self.difference.mean > 0 else "lower"
        return "not told apart"


def compare(outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Compare the test accuracy of each variant with that of the first, by Welch's t-test."""
    first, *others = by_variant(outcomes)
    return [Comparison(other, welch(first.accuracies, other.accuracies)) for other in others]


def differences_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Return one row for each variant but the first; None if no two variants can be compared."""
    compared = compare(outcomes)
    if not any(comparison.difference for comparison in compared):
        return None

    def column(name: str, text: Callable[[Difference], str]) -> Column[Comparison]:
        return Column(name, "right", lambda row: text(row.difference) if row.difference else "")

    columns = [
        Column[Comparison]("run", "left", lambda row: row.variant.name),
        column("difference", lambda d: f"{100 * d.mean:+.2f}"),
        column("95 % interval", lambda d: f"{100 * d.low:+.2f} to {100 * d.high:+.2f}"),
        column("t (degrees of freedom)", lambda d: f"{d.t:.2f} ({d.freedom:.1f})"),
        column("p", lambda d: cells.p_value(d.p)),
        Column[Comparison]("verdict", "left", lambda row: row.verdict),
        column("n needed", lambda d: f"{d.n_needed:,}" if d.n_needed else "above 1,000,000"),
    ]
    first = outcomes[0].run.name
    title = (
        f"Difference of the test accuracy from {first}, in points, by Welch's t-test; n needed: seeds of "
        "each of the two that would tell such a difference at these σ (α 5 %, power 80 %)"
    )
    return make_table(title, columns, compared)


def _text(mean: Mean | None, scale: float, digits: int) -> str:
    return mean.text(scale, digits) if mean else ""


def save(plan: Plan, outcomes: Sequence[Outcome]) -> Path:
    """Write `table.md` and `results.json` into the sweep's folder, and return the path of the former."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    tables = [table_of(plan, outcomes), differences_table(outcomes)]
    path = plan.folder / "table.md"
    texts = [f"{table.title}\n\n{to_markdown(table)}\n" for table in tables if table is not None]
    path.write_text("\n".join(texts), encoding="utf-8")
    runs = [
        {
            "name": outcome.run.name,
            "seed": outcome.run.seed,
            "overrides": outcome.run.overrides,
            "status": outcome.status,
            "reason": outcome.reason,
            "jobs": outcome.jobs,
            "folder": str(outcome.folder) if outcome.folder else None,
            "result": outcome.result.to_json() if outcome.result else None,
        }
        for outcome in outcomes
    ]
    differences = {
        comparison.variant.name: asdict(comparison.difference)
        for comparison in compare(outcomes)
        if comparison.difference is not None
    }
    content = {"sweep": plan.name, "base": plan.base, "runs": runs, "differences": differences}
    write_json(plan.folder / "results.json", content)
    return path
