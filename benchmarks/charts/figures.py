"""Lists the figures made from records, and draws them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.charts.beside_peers import draw_beside_peers, is_complete_comparison
from benchmarks.charts.depth import draw_depth, is_by_depth
from benchmarks.charts.streamed import draw_streamed, is_streamed, is_streamed_on_one_gpu
from benchmarks.charts.throughput import draw_throughput
from benchmarks.charts.time_to_accuracy import draw_time_to_accuracy, has_target
from benchmarks.charts.waterfall import draw_waterfall
from benchmarks.publish.records import FOLDER, Record

FOLDER_OF_FIGURES = FOLDER / "pictures"


@dataclass(frozen=True)
class FigureKind:
    """One figure.

    Attributes:
        benchmark: whose records it shows.
        shows: selects these records.
        alt: describes it for readers who do not see it.
        draw: draws it for a machine's folder, from all records, to a path.
    """

    benchmark: str
    shows: Callable[[Record], bool]
    alt: str
    draw: Callable[[str, Sequence[Record], Path], None]


FIGURES = {
    "beside_peers": FigureKind(
        "peers",
        is_complete_comparison,
        "Images per second of training from image files, ours beside the scripts of torchvision and timm",
        draw_beside_peers,
    ),
    "depth": FigureKind(
        "recipe",
        is_by_depth,
        "Test error of the paper's networks by depth, ours beside the paper's",
        draw_depth,
    ),
    "streamed": FigureKind(
        "end_to_end",
        is_streamed_on_one_gpu,
        "Images per second of training from image files, by loader, beside the step's own limit",
        draw_streamed,
    ),
    "throughput": FigureKind(
        "loader",
        lambda record: not is_streamed(record),
        "Images per second by batch size and loader",
        draw_throughput,
    ),
    "seconds_to_accuracy": FigureKind(
        "time_to_accuracy",
        has_target,
        "Seconds of training to an accuracy, ours beside programs of others",
        draw_time_to_accuracy,
    ),
    "waterfall": FigureKind(
        "ablation",
        lambda _: True,
        "Images per second as one switch after the other is set",
        draw_waterfall,
    ),
}


def paths(name: str, records: Sequence[Record], folder: Path = FOLDER_OF_FIGURES) -> list[Path]:
    """Return the paths of the figures of this name, one for each machine that has records for it."""
    kind = FIGURES[name]
    machines = dict.fromkeys(
        record.folder
        for record in records
        if record.benchmark == kind.benchmark
        and (record.images_per_sec or record.accuracy or record.whole_runs)
        and kind.shows(record)
    )
    return [folder / f"{machine}-{name}.png" for machine in machines]


def draw_all(records: Sequence[Record], folder: Path = FOLDER_OF_FIGURES) -> list[Path]:
    """Draw every figure that has records, and return the paths."""
    drawn = []
    for name, kind in FIGURES.items():
        for path in paths(name, records, folder):
            folder.mkdir(parents=True, exist_ok=True)
            kind.draw(path.name.removesuffix(f"-{name}.png"), records, path)
            drawn.append(path)
    return drawn
