"""Draws the speed of whole trainings, ours beside the training scripts of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.charts.bars import BARS_FRACTION, LABEL_PT, draw_bar, draw_label, hide_x, new_bar_chart
from benchmarks.measure import cells
from benchmarks.publish.peer_tables import describe_task
from benchmarks.publish.records import Record, newest
from pipeline.plotting import style

_LEFT_PX, _RIGHT_PX = 190, 40
_TASK_X = -0.186  # of a task's name, in widths of the axes: flush with the title
_LENGTH = BARS_FRACTION * 0.72  # of the longest bar of a group; its label takes the rest


def is_complete_comparison(record: Record) -> bool:
    """Return True if the record has its place in this figure."""
    runs = record.peer_runs
    return runs is not None and runs.is_complete and record.images_per_sec is not None


@dataclass(frozen=True)
class _Row:
    """The name of a task, or a program's bar.

    Attributes:
        name: of the task or the program.
        record: None for the name of a task.
        length: of the bar; 1 is the width of the axes.
    """

    name: str
    record: Record | None = None
    length: float = 0.0


def draw_beside_peers(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw a group of bars for each task, the fastest program first. The bars of one group share a scale."""
    shown = [r for r in newest(records) if r.folder == folder and is_complete_comparison(r)]
    machine, rows = f"{shown[0].gpu or 'CPU'}, {shown[0].cpu_cores} CPU cores", _rows(shown)
    precisions = {record.precision for record in shown}
    alike = f"{precisions.pop()}, equal batches" if len(precisions) == 1 else "equal batches"
    subtitle = f"{machine}; {alike}; loader and step together, median over runs"
    names = [row.name if row.record else "" for row in rows]
    with style.drawing([subtitle, *(row.name for row in rows)]):
        title = "Training from image files: images per second"
        figure, axes = new_bar_chart(names, _LEFT_PX, title, subtitle, right_px=_RIGHT_PX)
        hide_x(axes)
        axes.spines["left"].set_visible(False)
        for number, row in enumerate(rows):
            if row.record is None:  # a task's name is longer than the room beside the bars
                place = (_TASK_X, number + 0.12)
                axes.text(*place, row.name, va="center", fontsize=LABEL_PT, fontweight="bold")
                continue
            color = style.MUTED if row.record.baseline else style.BLUE
            draw_bar(axes, number, 0, row.length, color)
            draw_label(axes, number, row.length + 0.01, _label(row.record))
        style.save_png(figure, path)


def _rows(records: Sequence[Record]) -> list[_Row]:
    """Return the name of each task, and its programs behind it; tasks with the largest images first."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(record.comparison, []).append(record)
    rows = []
    for group in sorted(groups.values(), key=lambda group: -group[0].image_size):
        by_speed = sorted(group, key=lambda record: -(record.rate or 0.0))
        longest = by_speed[0].rate or 1.0
        rows.append(_Row(describe_task(by_speed[0]).replace("resnet", "ResNet-")))
        rows += [_Row(r.variant, r, (r.rate or 0.0) / longest * _LENGTH) for r in by_speed]
    return rows


def _label(record: Record) -> str:
    """Return the speed, with ours over it, or for ours its share of the step on one fixed batch."""
    parts = [cells.count(record.rate)]
    if record.baseline is not None:
        parts.append(f"quickres is {1 / record.baseline.ratio.median:.1f} × as fast")
        parts += [] if record.peer_runs and record.peer_runs.has_same_network else ["(another network)"]
    elif record.peer_runs is not None and record.peer_runs.step_share is not None:
        parts.append(f"{100 * record.peer_runs.step_share:.1f} % of the step without a loader")
    return "   ".join(parts)
