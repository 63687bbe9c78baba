"""What a sweep has found so far: mean ± standard deviation (n) over the seeds of each variant."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from benchmarks.publish.tables import Table, to_markdown
from benchmarks.sweep.plan import Plan, Run
from pipeline.atomic_io import read_json, write_json

Status = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended, or where it stands.

    Attributes:
        folder: of the finished run.
        result: contents of its result.json.
        reason: why it failed.
        jobs: runs at a time when it was trained.
    """

    run: Run
    status: Status = "waiting"
    folder: Path | None = None
    result: dict[str, Any] | None = None
    reason: str = ""
    jobs: int = 1


@dataclass(frozen=True)
class Mean:
    """Mean of n values and their standard deviation (with n - 1; None where n is 1)."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean | None":
        """
        >>> Mean.of([1.0, 3.0])
        Mean(mean=2.0, std=1.4142135623730951, n=2)
        """
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None

    def text(self, scale: float, digits: int) -> str:
        deviation = f" ± {scale * self.std:,.{digits}f}" if self.std is not None else ""
        return f"{scale * self.mean:,.{digits}f}{deviation} ({self.n})"


def find_finished(plan: Plan, run: Run) -> Outcome:
    """A finished run of the same name, seed and config in the sweep's folder; otherwise one that waits."""
    for path in sorted(plan.folder.glob(f"{run.key}-*/result.json"), reverse=True):
        return Outcome(run, "done", path.parent, read_json(path))
    return Outcome(run)


def values_of(outcomes: Sequence[Outcome], key: str) -> list[float]:
    """One figure of every finished run that has it; `images_per_sec` by its median."""
    found = [outcome.result.get(key) for outcome in outcomes if outcome.result]
    return [
        float(v["median"] if isinstance(v, dict) else v)
        for v in found
        if v is not None and (not isinstance(v, dict) or v["median"])
    ]


def by_variant(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.run.name, []).append(outcome)
    return grouped


def jobs_before(plan: Plan) -> dict[str, int]:
    """How many runs at a time there were when those that `save` has noted were trained, by their folders."""
    path = plan.folder / "results.json"
    saved = read_json(path)["runs"] if path.is_file() else []
    return {run["folder"]: run.get("jobs", 1) for run in saved}


def table_of(plan: Plan, outcomes: Sequence[Outcome]) -> Table:
    """One row for each variant, with what it changes and how it did."""
    rows = []
    jobs = max(outcome.jobs for outcome in outcomes)
    for name, group in by_variant(outcomes).items():
        accuracy, speed, seconds = (
            Mean.of(values_of(group, key)) for key in ("test_accuracy", "images_per_sec", "train_s")
        )
        rows.append(
            (
                name,
                " ".join(group[0].run.changes) or "–",
                f"{accuracy.text(100, 2)}" if accuracy else "",
                speed.text(1, 0) if speed else "",
                seconds.text(1, 1) if seconds else "",
                _standing(group),
            )
        )
    shared = (
        f"; {jobs} at a time, which share the machine: the speeds are not those of one alone"
        if jobs > 1
        else ""
    )
    header = ("run", "changes", "test accuracy %", "images/sec", "train s", "state")
    columns = (
        len(header) if any(row[-1] for row in rows) else len(header) - 1
    )  # all are done: no column to say nothing in
    title = f"{plan.name}: {plan.base}, mean ± standard deviation (n){shared}"
    return Table(title, header[:columns], tuple(row[:columns] for row in rows), 2)


def _standing(group: Sequence[Outcome]) -> str:
    counts = {
        status: sum(outcome.status == status for outcome in group)
        for status in ("running", "waiting", "stopped", "failed")
    }
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def save(plan: Plan, outcomes: Sequence[Outcome]) -> Path:
    """Write `table.md` and `results.json` into the sweep's folder; the path of the former."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    table = table_of(plan, outcomes)
    path = plan.folder / "table.md"
    path.write_text(f"{table.title}\n\n{to_markdown(table)}\n", encoding="utf-8")
    runs = [
        {
            "name": outcome.run.name,
            "seed": outcome.run.seed,
            "overrides": outcome.run.overrides,
            "status": outcome.status,
            "reason": outcome.reason,
            "jobs": outcome.jobs,
            "folder": str(outcome.folder) if outcome.folder else None,
            "result": outcome.result,
        }
        for outcome in outcomes
    ]
    write_json(
        plan.folder / "results.json",
        json.loads(json.dumps({"sweep": plan.name, "base": plan.base, "runs": runs})),
    )
    return path


def with_status(outcome: Outcome, status: Status, reason: str = "") -> Outcome:
    return replace(outcome, status=status, reason=reason)
