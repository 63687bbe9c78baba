"""Tables made from records: the same on the terminal and, as Markdown, in the README."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.measure.cells import (
    accuracy,
    against,
    count,
    memory,
    number,
    share,
    significant,
    spread,
    thousands,
    times,
)
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record

_PEAK_NOTE = "share of the rate of a large matrix product in the same run (on a GPU 8192³ in bfloat16)"

_RECIPE_NOTE = "test accuracy at the last step, mean ± σ (n); seconds of training without compiling, evaluation and saving, median"


@dataclass(frozen=True)
class Table:
    """Text cells under a header; columns from `first_number` on are set flush right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    first_number: int = 1


def to_markdown(table: Table) -> str:
    """A GitHub table, without the title."""
    rule = ["---" if i < table.first_number else "---:" for i in range(len(table.header))]
    lines = [table.header, tuple(rule), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_rich(table: Table) -> RichTable:
    rich = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for i, name in enumerate(table.header):
        rich.add_column(name, justify="left" if i < table.first_number else "right", overflow="fold")
    for row in table.rows:
        rich.add_row(*(escape(cell) for cell in row))
    return rich


def _layout(record: Record) -> str:
    return "NHWC" if record.channels_last else "NCHW"


def _data(record: Record) -> str:
    return f"{record.dataset} {record.image_size}×{record.image_size}"


def _loader(records: Sequence[Record]) -> Table:
    """Loaders down, batch sizes across: median images/sec with the 10th to 90th percentile."""
    sizes = sorted({record.batch_size for record in records})
    rows: dict[tuple[str, ...], dict[int, Record]] = {}
    for record in records:
        images = _data(record) + (
            ", float32" if record.precision == "fp32" else ""
        )  # which is twice the bytes
        rows.setdefault((record.variant, images, record.augment or "none", str(record.world_size)), {})[
            record.batch_size
        ] = record
    lines = []
    for key, by_size in rows.items():
        cells = []
        for size in sizes:
            rate = by_size[size].images_per_sec if size in by_size else None
            cells.append(
                f"{thousands(rate.median)} ({thousands(rate.p10)}–{thousands(rate.p90)})" if rate else ""
            )
        lines.append((*key, *cells))
    header = ("loader", "images", "augmentation", "processes", *(f"batch {size}" for size in sizes))
    return Table("Loader alone: images/sec, median (p10–p90)", header, tuple(lines), 4)


def _step(records: Sequence[Record]) -> Table:
    header = (
        "model",
        "precision",
        "layout",
        "compile",
        "batch",
        "GPUs",
        "images/sec",
        "p10–p90 (n)",
        "step ms",
        "TFLOP/s",
        "of peak",
        "memory",
        "compile s",
    )
    rows = [
        (
            record.model or "",
            record.precision,
            _layout(record),
            record.compile_mode,
            str(record.batch_size),
            str(record.world_size),
            count(record.images_per_sec.median if record.images_per_sec else None),
            spread(record.images_per_sec),
            number(record.step_ms),
            significant(record.tflops),
            share(record.peak_share),
            memory(record.peak_memory_bytes),
            number(record.compile_s, 1),
        )
        for record in records
    ]
    return Table(f"Step alone, on one fixed batch; of peak: {_PEAK_NOTE}", header, tuple(rows), 4)


def _end_to_end(records: Sequence[Record]) -> Table:
    header = (
        "variant",
        "model",
        "data",
        "loader",
        "precision",
        "compile",
        "batch",
        "GPUs",
        "images/sec",
        "p10–p90 (n)",
        "step ms",
        "data wait",
        "compared",
    )
    rows = [
        (
            record.variant,
            record.model or "",
            _data(record),
            record.loader or "",
            record.precision,
            record.compile_mode,
            str(record.batch_size),
            str(record.world_size),
            count(record.images_per_sec.median if record.images_per_sec else None),
            spread(record.images_per_sec),
            number(record.step_ms),
            share(record.data_wait_fraction),
            against(record.baseline),
        )
        for record in records
    ]
    return Table("Loader and step together", header, tuple(rows), 6)


def _saving(records: Sequence[Record]) -> Table:
    return replace(_end_to_end(records), title="Loader and step together, with and without saving")


def _peer(records: Sequence[Record]) -> Table:
    return replace(_end_to_end(records), title="Training steps of others, on one fixed batch")


def _scaling(records: Sequence[Record]) -> Table:
    header = (
        "variant",
        "model",
        "data",
        "loader",
        "batch per GPU",
        "batch",
        "GPUs",
        "images/sec",
        "p10–p90 (n)",
        "step ms",
        "speed-up",
        "efficiency",
    )
    rows = [
        (
            record.variant,
            record.model or "",
            _data(record),
            record.loader or "",
            str(record.batch_size // record.world_size),
            str(record.batch_size),
            str(record.world_size),
            count(record.images_per_sec.median if record.images_per_sec else None),
            spread(record.images_per_sec),
            number(record.step_ms),
            times(record.baseline),
            share(record.baseline.ratio.median / record.world_size if record.baseline else None),
        )
        for record in records
    ]
    return Table("Loader and step together on one process and on several", header, tuple(rows), 4)


def _kernel(records: Sequence[Record]) -> Table:
    header = ("kernel", "type", "batch", "classes", "µs", "images/sec", "p10–p90 (n)", "compared")
    rows = [
        (
            record.variant,
            record.precision,
            str(record.batch_size),
            str(record.num_classes or ""),
            number(1e3 * record.step_ms if record.step_ms else None, 1),
            thousands(record.images_per_sec.median) if record.images_per_sec else "",
            spread(record.images_per_sec),
            against(record.baseline),
        )
        for record in records
    ]
    return Table("Kernels: device time of one call, replayed from a CUDA graph", header, tuple(rows), 2)


def _ablation(records: Sequence[Record]) -> Table:
    header = (
        "variant",
        "loader",
        "batch",
        "images/sec",
        "p10–p90 (n)",
        "compared",
        "accuracy",
        "epochs",
        "compile s",
        "epochs until it pays",
    )
    rows = [
        (
            record.variant,
            record.loader or "",
            str(record.batch_size),
            count(record.images_per_sec.median if record.images_per_sec else None),
            spread(record.images_per_sec),
            against(record.baseline),
            accuracy(record.accuracy, record.accuracy_std, record.accuracy_n),
            number(record.epochs, 0),
            number(record.compile_s, 1),
            number(record.epochs_to_pay, 1),
        )
        for record in records
    ]
    return Table("Ablation, loader and step together", header, tuple(rows), 2)


def _startup(records: Sequence[Record]) -> Table:
    header = ("start", "model", "batch", "precision", "compile", "GPUs", "seconds to the first step", "n")
    rows = [
        (
            record.variant,
            record.model or "",
            str(record.batch_size),
            record.precision,
            record.compile_mode,
            str(record.world_size),
            number(record.first_step_s, 1),
            str(record.first_step_n or ""),
        )
        for record in records
    ]
    return Table("From the command to the end of the first optimizer step", header, tuple(rows), 2)


def _recipe(records: Sequence[Record]) -> Table:
    header = (
        "recipe",
        "network",
        "parameters",
        "data",
        "epochs",
        "batch",
        "GPUs",
        "accuracy",
        "with mirror image",
        "images/sec",
        "p10–p90 (n)",
        "training s",
    )
    rows = [
        (
            record.variant + ("" if is_current(record) else ", since changed"),
            record.model or "",
            count(record.parameters),
            record.data or record.dataset,
            number(record.epochs, 0),
            str(record.batch_size),
            str(record.world_size),
            accuracy(record.accuracy, record.accuracy_std, record.accuracy_n),
            accuracy(record.flip_tta_accuracy, None, record.accuracy_n),
            count(record.images_per_sec.median if record.images_per_sec else None),
            spread(record.images_per_sec),
            number(record.train_s, 1),
        )
        for record in records
    ]
    return Table(f"Shipped recipes: {_RECIPE_NOTE}", header, tuple(rows), 4)


MAKERS: dict[str, Callable[[Sequence[Record]], Table]] = {
    "loader": _loader,
    "step": _step,
    "end_to_end": _end_to_end,
    "peer": _peer,
    "kernel": _kernel,
    "ablation": _ablation,
    "startup": _startup,
    "saving": _saving,
    "scaling": _scaling,
    "recipe": _recipe,
}


def tables_of(records: Sequence[Record]) -> list[Table]:
    """One table for each benchmark that the records belong to."""
    names = dict.fromkeys(record.benchmark for record in records)
    return [MAKERS[name]([record for record in records if record.benchmark == name]) for name in names]
