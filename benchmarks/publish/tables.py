"""Makes the tables of records; `TABLES` has the columns of each benchmark."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.measure import cells
from benchmarks.publish.columns import (
    ACCURACY,
    BATCH,
    COMPARED,
    COMPILE,
    COMPILE_S,
    DATA,
    DATA_WAIT,
    EPOCHS,
    GPUS,
    LAYOUT,
    LOADER,
    MODEL,
    PRECISION,
    RATE,
    SPREAD,
    STEP_MS,
    VARIANT,
    Align,
    Column,
    Table,
    images_of,
    make_table,
)
from benchmarks.publish.kernel_kinds import KernelKind
from benchmarks.publish.peer_tables import peers_table
from benchmarks.publish.prices import is_current
from benchmarks.publish.records import Record
from benchmarks.publish.whole_runs import WholeRuns, mean_and_deviation
from pipeline.config import label_of


def tables_of(records: Sequence[Record]) -> list[Table]:
    """Return one table for each benchmark that the records belong to."""
    names = dict.fromkeys(record.benchmark for record in records)
    return [MAKERS[name]([record for record in records if record.benchmark == name]) for name in names]


def _with_views(record: Record) -> str:
    """Return the accuracy with the mirror image; that of other views beside the mirror image names them."""
    if record.views is None:
        return cells.accuracy(record.flip_tta_accuracy, None, record.accuracy_n)
    figure = cells.accuracy(record.views_accuracy, None, record.accuracy_n)
    return f"{figure} {label_of(record.views)}"


def _efficiency(record: Record) -> str:
    baseline = record.baseline
    return cells.percent(baseline.ratio.median / record.world_size if baseline else None)


_STEP = (
    *(MODEL, PRECISION, LAYOUT, COMPILE, BATCH, GPUS, RATE, SPREAD, STEP_MS),
    Column[Record]("TFLOP/s", "right", lambda r: cells.significant(r.tflops)),
    Column[Record]("of peak", "right", lambda r: cells.percent(r.peak_share)),
    Column[Record]("memory", "right", lambda r: cells.memory(r.peak_memory_bytes)),
    COMPILE_S,
)
_END_TO_END = (
    *(VARIANT, MODEL, DATA, LOADER, PRECISION, COMPILE, BATCH, GPUS, RATE, SPREAD, STEP_MS),
    *(DATA_WAIT, COMPARED),
)
_DECODER = (
    VARIANT.renamed("decoder"),
    DATA,
    Column[Record]("with the step of", "left", lambda r: r.model or "(loader alone)"),
    *(BATCH, RATE, SPREAD, DATA_WAIT, COMPARED),
)
_SCALING = (
    *(VARIANT, MODEL, DATA, LOADER),
    Column[Record]("batch per GPU", "right", lambda r: str(r.batch_size // r.world_size)),
    *(BATCH, GPUS, RATE, SPREAD, STEP_MS),
    Column[Record]("speed-up", "right", lambda r: cells.speed_up(r.baseline)),
    Column[Record]("efficiency", "right", _efficiency),
)
_KERNEL = (
    VARIANT.renamed("kernel"),
    PRECISION.renamed("type"),
    BATCH,
    Column[Record]("classes", "right", lambda r: str(r.num_classes or "")),
    Column[Record]("µs", "right", lambda r: cells.number(1e3 * r.step_ms if r.step_ms else None, 1)),
    Column[Record]("images/sec", "right", lambda r: cells.thousands(r.rate) if r.rate else ""),
    *(SPREAD, COMPARED),
)
_ABLATION = (
    *(VARIANT, DATA, LOADER, BATCH, RATE, SPREAD, COMPARED, COMPILE_S),
    Column[Record]("epochs until it pays", "right", lambda r: cells.number(r.epochs_to_pay, 1)),
)
_STARTUP = (
    *(VARIANT.renamed("start"), MODEL, BATCH, PRECISION.on_the("right"), COMPILE.on_the("right"), GPUS),
    Column[Record]("seconds to the first step", "right", lambda r: cells.number(r.first_step_s, 1)),
    Column[Record]("to the end", "right", lambda r: cells.number(r.whole_s, 1)),
    Column[Record]("parts of it, seconds", "left", lambda r: cells.parts(r.timeline)),
    Column[Record]("n", "right", lambda r: str(r.first_step_n or "")),
)
_NEIGHBOUR = (
    *(VARIANT, MODEL, BATCH, PRECISION.on_the("right"), RATE, SPREAD, STEP_MS, COMPARED),
    Column[Record]("cores", "right", lambda r: str(r.cpu_cores)),
)
_RECIPE = (
    Column[Record]("recipe", "left", lambda r: r.variant + ("" if is_current(r) else ", since changed")),
    MODEL.renamed("network"),
    Column[Record]("parameters", "left", lambda r: cells.count(r.parameters)),
    Column[Record]("data", "left", lambda r: r.data or r.dataset),
    *(EPOCHS, BATCH, GPUS, ACCURACY),
    Column[Record]("with mirror image", "right", _with_views),
    *(RATE, SPREAD),
    Column[Record]("training s", "right", lambda r: cells.number(r.train_s, 1)),
)


def _of_runs(name: str, align: Align, text: Callable[[WholeRuns], str]) -> Column[Record]:
    """Return a column of `time_to_accuracy`."""
    return Column(name, align, lambda record: text(record.whole_runs) if record.whole_runs else "")


def _accuracy_of_runs(runs: WholeRuns) -> str:
    return cells.accuracy(*mean_and_deviation(runs.accuracies(runs.figure)), len(runs.runs))


def _seconds_of_runs(runs: WholeRuns) -> str:
    mean, deviation = mean_and_deviation(runs.seconds)
    return cells.number(mean, 3) + (f" ± {deviation:.3f}" if deviation is not None else "")


def _floor_of_runs(runs: WholeRuns) -> str:
    if runs.floor is None:
        return ""
    share = runs.floor.seconds / mean_and_deviation(runs.seconds)[0]
    return f"{cells.number(runs.floor.seconds, 3)} ({cells.percent(share)})"


def _wait_of_runs(runs: WholeRuns) -> str:
    if runs.cold_wait_s is None or runs.warm_wait_s is None:
        return cells.number(runs.wait_s, 1)
    return f"{cells.number(runs.cold_wait_s, 1)} cold, {cells.number(runs.warm_wait_s, 1)} warm"


_TIME_TO_ACCURACY = (
    *(VARIANT.renamed("recipe"), MODEL.renamed("network"), DATA),
    _of_runs("runs", "right", lambda r: str(len(r.runs)) + ("" if r.is_complete else f" of {r.planned}")),
    _of_runs("views", "left", lambda r: r.figure),
    _of_runs("accuracy", "right", _accuracy_of_runs),
    _of_runs("target", "right", lambda r: "" if r.target is None else f"{100 * r.target:g} %"),
    _of_runs("p", "right", lambda r: cells.p_value(r.p)),
    _of_runs("seconds", "right", _seconds_of_runs),
    _of_runs("minimum", "right", lambda r: cells.number(min(r.seconds), 3)),
    _of_runs("least, s", "right", _floor_of_runs),
    _of_runs("from the command, s", "right", _wait_of_runs),
    _of_runs("kernels compiled", "right", lambda r: cells.count(r.compiled)),
)

_PEAK_NOTE = "share of the rate of a large matrix product in the same run (on a GPU 8192³ in bfloat16)"
_RECIPE_NOTE = (
    "test accuracy at the last step, mean ± σ (n); seconds of training without compiling, evaluation and "
    "saving, median"
)
_TIME_NOTE = (
    "mean ± σ (n) over seeds; seconds from the first work on the training images to the last view of the "
    "test images; p of a one-sided t-test that the mean accuracy is above the target; the least seconds of "
    "all layers at the device's best rates, and their share of the mean; then the seconds from the command "
    "to the first trained network, with cold and warm compile caches where both were measured, and the "
    "kernels compiled in the process of the runs"
)
TABLES: dict[str, tuple[str, tuple[Column[Record], ...]]] = {
    "step": (f"Step alone, on one fixed batch; of peak: {_PEAK_NOTE}", _STEP),
    "end_to_end": ("Loader and step together", _END_TO_END),
    "decoder": ("Decoders of streamed images, by the CPU cores that the process may use", _DECODER),
    "peer": ("Training steps of others, on one fixed batch", _END_TO_END),
    "kernel": ("Kernels: device time of one call, replayed from a CUDA graph", _KERNEL),
    "startup": ("From the command to the end of the first optimizer step, and to its end", _STARTUP),
    "neighbour": ("Training on two CPU cores, alone and beside a process that uses one of them", _NEIGHBOUR),
    "saving": ("Loader and step together, with and without saving", _END_TO_END),
    "scaling": ("Loader and step together on one process and on several", _SCALING),
    "recipe": (f"Shipped recipes: {_RECIPE_NOTE}", _RECIPE),
    "time_to_accuracy": (f"Time to accuracy: {_TIME_NOTE}", _TIME_TO_ACCURACY),
}


def _ablation_table(records: Sequence[Record]) -> Table:
    """Return a row for each variant, with its accuracy if one was measured."""
    has_accuracy = any(record.accuracy is not None for record in records)
    columns = [*_ABLATION, *((ACCURACY, EPOCHS) if has_accuracy else ())]
    return make_table("Ablation, loader and step together", columns, records)


@dataclass(frozen=True)
class _LoaderRow:
    """One loader on one kind of images, by batch size."""

    variant: str
    images: str
    augment: str
    processes: str

    @classmethod
    def of(cls, record: Record) -> "_LoaderRow":
        precision = ", float32" if record.precision == "fp32" else ""  # which is twice the bytes
        images = images_of(record) + precision
        return cls(record.variant, images, record.augment or "none", str(record.world_size))


def _loader_table(records: Sequence[Record]) -> Table:
    """Return loaders down and batch sizes across: median images/sec with the 10th to 90th percentile."""
    rows: dict[_LoaderRow, dict[int, Record]] = {}
    for record in records:
        rows.setdefault(_LoaderRow.of(record), {})[record.batch_size] = record

    def rate_at(size: int, row: _LoaderRow) -> str:
        rate = rows[row][size].images_per_sec if size in rows[row] else None
        if rate is None:
            return ""
        return f"{cells.thousands(rate.median)} ({cells.thousands(rate.p10)}–{cells.thousands(rate.p90)})"

    columns = [
        Column[_LoaderRow]("loader", "left", lambda row: row.variant),
        Column[_LoaderRow]("images", "left", lambda row: row.images),
        Column[_LoaderRow]("augmentation", "left", lambda row: row.augment),
        Column[_LoaderRow]("processes", "left", lambda row: row.processes),
        *(
            Column[_LoaderRow](f"batch {size}", "right", partial(rate_at, size))
            for size in sorted({record.batch_size for record in records})
        ),
    ]
    return make_table("Loader alone: images/sec, median (p10–p90)", columns, rows)


@dataclass(frozen=True)
class _Kind:
    """One kind of kernel of one record."""

    record: Record
    share: KernelKind


def _kernels_table(records: Sequence[Record]) -> Table:
    """Return the kinds of kernels of each record, the largest first."""
    columns = [
        Column[_Kind]("model", "left", lambda row: row.record.model or ""),
        Column[_Kind]("data", "left", lambda row: images_of(row.record)),
        Column[_Kind]("batch", "right", lambda row: str(row.record.batch_size)),
        Column[_Kind]("images/sec", "right", lambda row: cells.count(row.record.rate)),
        Column[_Kind]("kernels", "left", lambda row: row.share.kind),
        Column[_Kind]("µs a step", "right", lambda row: cells.count(row.share.microseconds)),
        Column[_Kind]("share", "right", lambda row: cells.percent(row.share.fraction)),
        Column[_Kind]("launches", "right", lambda row: cells.count(row.share.launches)),
        Column[_Kind]("achieved", "right", lambda row: row.share.achieved),
        Column[_Kind]("the largest, µs", "left", lambda row: row.share.named),
    ]
    rows = [_Kind(record, share) for record in records for share in record.kernels or ()]
    return make_table(_KERNELS_TITLE, columns, rows)


_KERNELS_TITLE = (
    "A training step with its loader, divided among the kinds of kernels: the share is that of the time from "
    "the first kernel to the last, under the profiler; images/sec are those without it"
)
MAKERS: dict[str, Callable[[Sequence[Record]], Table]] = {
    "loader": _loader_table,
    "ablation": _ablation_table,
    "peers": peers_table,
    "kernels_by_share": _kernels_table,
    **{name: partial(make_table, title, columns) for name, (title, columns) in TABLES.items()},
}
