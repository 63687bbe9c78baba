"""Draws the seconds that whole trainings take to reach an accuracy, ours beside programs of others."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts.bars import BARS_FRACTION, draw_bar, draw_label, hide_x, new_bar_chart
from benchmarks.measure import cells
from benchmarks.publish.prices import recipe_path
from benchmarks.publish.records import Record, newest
from benchmarks.publish.whole_runs import WholeRuns, mean_and_deviation
from pipeline.plotting import style

_TITLE = "Seconds of training to an accuracy"


def has_target(record: Record) -> bool:
    """Return True if the record has its place in this figure: all runs of a benchmark with a target."""
    runs = record.whole_runs
    return runs is not None and runs.target is not None and runs.is_complete


def draw_time_to_accuracy(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw a group of bars for each target, the fastest first. The bars of one group share a scale."""
    drawn = [record for record in newest(records) if record.folder == folder and has_target(record)]
    rows, machine = _rows(drawn), drawn[0].gpu or "CPU"
    by_speed = sorted(drawn, key=_seconds)
    slowest = {_runs(record).target: _seconds(record) for record in by_speed}
    subtitle = (
        f"{machine}; mean test accuracy ± σ (n); from the first work on the images to the last view; blue: "
        "this project"
    )
    names = [row if isinstance(row, str) else row.variant.removeprefix("cifar10_") for row in rows]
    with style.drawing([subtitle, *names]):
        figure, axes = new_bar_chart(names, 250, _TITLE, subtitle, right_px=40, bottom_px=24)
        hide_x(axes)
        for number, row in enumerate(rows):
            if isinstance(row, str):
                axes.get_yticklabels()[number].set_fontweight("bold")
                continue
            length = _seconds(row) / slowest[_runs(row).target] * BARS_FRACTION * 0.8
            draw_bar(axes, number, 0, length, style.BLUE if _is_ours(row) else style.MUTED)
            draw_label(axes, number, length + 0.01, _label(row))
        style.save_png(figure, path)


def _rows(records: Sequence[Record]) -> list[str | Record]:
    """Return the name of each target, and the records of it behind it."""
    rows: list[str | Record] = []
    for target in sorted({_runs(record).target or 0.0 for record in records}):
        rows.append(f"{100 * target:g} %")
        rows += sorted((r for r in records if _runs(r).target == target), key=_seconds)
    return rows


def _runs(record: Record) -> WholeRuns:
    assert record.whole_runs is not None
    return record.whole_runs


def _seconds(record: Record) -> float:
    return mean_and_deviation(_runs(record).seconds)[0]


def _is_ours(record: Record) -> bool:
    return recipe_path(record.variant).is_file()


def _label(record: Record) -> str:
    runs = _runs(record)
    accuracy = cells.accuracy(*mean_and_deviation(runs.accuracies(runs.figure)), len(runs.runs))
    seconds = _seconds(record)
    return f"{seconds:.2f} s   {accuracy}" if seconds < 10 else f"{seconds:.1f} s   {accuracy}"
