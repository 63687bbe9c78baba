"""Shows the prediction of weak scaling, before it is measured, and beside the measurement."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

from benchmarks.measure.cells import count, number, percent
from benchmarks.publish.columns import Column, Table, make_table
from benchmarks.publish.records import Predicted, Record
from benchmarks.scaling.scaling_model import TOLERANCE, Model, Range, miss

_NOT_DETERMINED = "not determined"


def parts_table(model: Model, loader: str, sizes: Sequence[int]) -> Table:
    """Return the milliseconds of each part of a step on two processes, and on more, the numbers of SIZES."""
    parts: dict[str, Callable[[int], Range]] = {
        "computing, mean over the processes": model.computing_s,
        "waiting for the slowest process": model.waiting_s,
        "preparing gradients": lambda _: model.averaging_s,
        "all-reduce": model.reducing_s,
        "not explained by these": model.unexplained_s,
        "step": model.step_s,
    }
    columns = [
        Column[str]("ms", "left", lambda name: name),
        *(Column[str](f"on {size}", "right", partial(_milliseconds, parts, size)) for size in (2, *sizes)),
    ]
    return make_table(f"Predicted from one and two processes, loader {loader}", columns, parts)


def _milliseconds(parts: dict[str, Callable[[int], Range]], size: int, name: str) -> str:
    low, high = (1e3 * seconds for seconds in parts[name](size))
    return number(low, 3) if high - low < 5e-4 else f"{number(low, 3)}–{number(high, 3)}"


def describe(model: Model) -> Iterator[str]:
    """Yield sentences about the quantities that the prediction rests on."""
    calibration, latency = model.calibration, model.latency_s
    yield f"latency of an all-reduce on 2 processes: {1e6 * latency:.0f} µs"
    for size in dict.fromkeys(calibration.messages):
        seconds = calibration.reduce_s[size]
        # on two, as many bytes are sent as there are
        rate = f"{size / (seconds - latency) / 1e9:.3g} GB/s" if seconds > 1.5 * latency else _NOT_DETERMINED
        yield f"all-reduce of {size / 1e6:.2f} MB on 2: {1e3 * seconds:.3f} ms; bandwidth: {rate}"
    share = _NOT_DETERMINED if model.waited_share is None else percent(model.waited_share)
    yield f"share of the differences between steps that processes wait for: {share}"
    beside = f"{1e3 * model.beside_s:.3f} ms" if model.beside_s else "within the spread of the measurement"
    yield f"time that a step loses if another process computes beside it: {beside}"


# --- beside the measurement ---------------------------------------------------------------------------------


def _predicted(record: Record) -> str:
    assert record.predicted is not None
    low, high = (count(value) for value in (record.predicted.low, record.predicted.high))
    middle = count(record.predicted.images_per_sec)
    return middle if low == high else f"{middle} ({low}–{high})"


def _miss(record: Record) -> float:
    assert record.predicted is not None and record.rate is not None
    return miss(record.predicted, record.rate)


def is_off(record: Record) -> bool:
    """Return True if a prediction misses the measurement by more than the tolerance."""
    return abs(_miss(record)) > TOLERANCE


def _verdict(record: Record) -> str:
    return f"{'not ' if is_off(record) else ''}within {100 * TOLERANCE:g} %"


_COLUMNS = (
    Column[Record]("model", "left", lambda r: r.model or ""),
    Column[Record]("loader", "left", lambda r: r.loader or ""),
    Column[Record]("batch per GPU", "right", lambda r: str(r.batch_size // r.world_size)),
    Column[Record]("processes", "right", lambda r: str(r.world_size)),
    Column[Record]("predicted images/sec", "right", _predicted),
    Column[Record]("measured", "right", lambda r: count(r.rate)),
    Column[Record]("prediction off by", "right", lambda r: f"{100 * _miss(r):+.1f} %"),
    Column[Record]("verdict", "left", _verdict),
)


def table(records: Sequence[Record]) -> Table:
    """Return predictions beside measurements, of the records of weak scaling that hold a prediction."""
    rows = [record for record in records if record.predicted is not None and record.rate is not None]
    return make_table(
        "Weak scaling, predicted from one and two processes before it was measured", _COLUMNS, rows
    )


def describe_miss(model: Model, weak: Record, apart: Record) -> str:
    """Return by how much each side of a step was missed: computing, and the exchange of gradients.

    Args:
        model: that predicted.
        weak, apart: records of as many processes, together and each for itself.
    """
    assert weak.step_ms is not None and apart.step_ms is not None
    size = weak.world_size
    # the slowest process of a window counts there, and single slow steps do not
    alone_ms = 1e3 * (model.computing_s(size).middle + model.slowest_device_s(size))
    together_ms = 1e3 * model.step_s(size).middle
    pairs = {
        "a step of processes apart": (alone_ms, apart.step_ms),
        "its additional time together": (together_ms - alone_ms, weak.step_ms - apart.step_ms),
    }
    texts = [f"{name} {ours:.3f} ms, measured {found:.3f} ms" for name, (ours, found) in pairs.items()]
    return f"predicted for {size} processes: {'; '.join(texts)}"


def sentence(predicted: Predicted, batch_size: int, size: int, one_s: Sequence[float]) -> str:
    """Return a prediction in words, with its efficiency.

    Args:
        predicted: the throughput on `size` processes.
        batch_size: of each process.
        one_s: seconds per step of each window of one process.
    """
    efficiency = predicted.images_per_sec / size * median(one_s) / batch_size
    low, high = count(predicted.low), count(predicted.high)
    rate = f"{count(predicted.images_per_sec)} images/sec ({low}–{high})"
    return (
        f"predicted for weak scaling on {size} processes: {rate}, {percent(efficiency)} of {size} times one"
    )
