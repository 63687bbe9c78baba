"""Draws the throughput of training from image files, by loader."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts.bars import BARS_FRACTION, draw_bar, draw_label, new_bar_chart
from benchmarks.measure.cells import count
from benchmarks.publish.records import Record, newest_of
from pipeline.plotting import style

_LARGE_IMAGE = 128  # pixels: from here on images are streamed from their files


def is_streamed(record: Record) -> bool:
    """Return True if the images of the record were streamed from their files."""
    return record.image_size >= _LARGE_IMAGE


def is_streamed_on_one_gpu(record: Record) -> bool:
    """Return True if the record has its place in this figure."""
    return is_streamed(record) and record.world_size == 1


def draw_streamed(folder: str, records: Sequence[Record], path: Path) -> None:
    """Draw a bar for each loader at its fastest, beside the step without a loader, on one GPU."""
    bars = _fastest_by_loader(folder, records)
    first = bars[0]
    fastest = first.rate or 0.0
    size = f"{first.image_size}×{first.image_size}"
    machine = f"{first.gpu or 'CPU'}, {first.cpu_cores} CPU cores"
    images = f"{first.data} at {size}" if first.data else size
    subtitle = f"{machine}, {images}, {first.precision}; median, line from p10 to p90"
    title = f"{first.network.replace('resnet', 'ResNet-')} from JPEG files: images per second"
    with style.drawing([subtitle]):
        figure, axes = new_bar_chart([name_of_bar(bar) for bar in bars], 330, title, subtitle, right_px=40)
        axes.set_xlim(0, fastest / BARS_FRACTION)
        for row, record in enumerate(bars):
            rate = record.images_per_sec
            assert rate is not None
            draw_bar(axes, row, 0, rate.median, style.BLUE if record.loader == "dali" else style.MUTED)
            axes.plot([rate.p10, rate.p90], [row, row], color=style.INK, linewidth=1.5)
            draw_label(axes, row, max(rate.median, rate.p90) + 0.01 * fastest, count(rate.median))
        style.save_png(figure, path)


def _fastest_by_loader(folder: str, records: Sequence[Record]) -> list[Record]:
    """Return the fastest record of each loader, of the network and the images that were measured last."""
    streamed = [r for r in newest_of("end_to_end", folder, records) if is_streamed_on_one_gpu(r)]
    last = streamed[-1]
    fastest: dict[str | None, Record] = {}
    for record in sorted(streamed, key=lambda record: record.rate or 0.0, reverse=True):
        if _subject(record) == _subject(last):
            fastest.setdefault(record.loader, record)
    return list(fastest.values())


def _subject(record: Record) -> tuple[str, int, str | None]:
    return record.network, record.image_size, record.data


def name_of_bar(record: Record) -> str:
    """Return the label of a record: its loader, the decoder or the workers, and the batch size."""
    data, batch = record.config["data"], f"batch {record.batch_size}"
    decoder = data.get("decoder", "gpu").upper().replace("BOTH", "CPU and GPU")
    names = {
        "synthetic": f"the step's own limit, {batch}",
        "dali": f"DALI, files decoded by the {decoder}, {batch}",
        "torchvision": f"torchvision, {data['num_threads']} workers, {batch}",
    }
    return names.get(record.loader or "", f"{record.loader}, {batch}")
