"""Makes the tables of `peers`: one of figures, one of settings."""

from collections.abc import Callable, Sequence

from benchmarks.measure import cells
from benchmarks.publish.columns import (
    ACCURACY,
    COMPILE,
    LAYOUT,
    PRECISION,
    RATE,
    SPREAD,
    VARIANT,
    Column,
    Table,
    make_table,
)
from benchmarks.publish.peer_runs import PeerRuns
from benchmarks.publish.records import Record

_SMALL = 64  # pixels: networks for images up to this size usually have another stem than ImageNet's


def _of_peers(name: str, text: Callable[[PeerRuns], str]) -> Column[Record]:
    """Return a column of `peers`."""
    return Column(name, "right", lambda record: text(record.peer_runs) if record.peer_runs else "")


def _factor(record: Record) -> str:
    """Return how many times the images/sec of a program ours has, of runs of the same round."""
    return f"{1 / record.baseline.ratio.median:.2f} × as fast" if record.baseline else ""


def describe_task(record: Record) -> str:
    """Return network, image size, images and batch of a training."""
    has_large_stem = record.config.get("model", {}).get("stem") == "imagenet"
    stem = " with ImageNet's stem" if has_large_stem and record.image_size <= _SMALL else ""
    network = f"{record.network}{stem} at {record.image_size}×{record.image_size}"
    return f"{network}, {record.data or record.dataset}, batch {record.batch_size}"


def _task(record: Record) -> str:
    return f"{describe_task(record)}, {cells.number(record.epochs, 0)} epochs"


def _seconds_to(runs: PeerRuns) -> str:
    return f"{cells.number(runs.seconds, 1)} to {cells.accuracy(runs.target, None)}"


def _source(runs: PeerRuns) -> str:
    """Return a program's versions, and the commit of its checkout, or else the hash of its files."""
    versions = [f"{name} {version}" for name, version in runs.versions.items()]
    commit = f"commit {runs.commit[:10]}" if runs.commit else f"files {runs.source_hash}"
    return ", ".join([*versions, commit])


_PEERS = (
    VARIANT.renamed("program"),
    Column[Record]("training", "left", _task),
    _of_peers("runs", lambda r: str(len(r.runs)) + ("" if r.is_complete else f" of {r.planned}")),
    *(RATE, SPREAD),
    Column[Record]("quickres is", "right", _factor),
    _of_peers("of the step alone", lambda r: cells.percent(r.step_share)),
    _of_peers("whole epochs, images/sec", lambda r: cells.count(r.whole_rate)),
    ACCURACY,
    _of_peers("seconds", _seconds_to),
    Column[Record]("GPU memory", "right", lambda r: cells.memory(r.peak_memory_bytes)),
    _of_peers("CPU cores in use", lambda r: cells.number(r.cores, 1)),
    _of_peers("words typed", lambda r: str(r.words)),
)
_PEER_SETTINGS = (
    VARIANT.renamed("program"),
    Column[Record]("training", "left", _task),
    _of_peers("source", _source).on_the("left"),
    Column[Record]("parameters", "right", lambda r: cells.count(r.parameters)),
    *(PRECISION, LAYOUT, COMPILE),
    _of_peers("settings typed", lambda r: str(r.settings)),
    _of_peers("differs from quickres in", lambda r: "; ".join(r.differences)).on_the("left"),
)
_PEERS_NOTE = (
    "images/sec of training, loader and step together (of the others in the whole rounds of their workers), "
    "then of training images over whole epochs with evaluating and saving, both without the first epoch; "
    "accuracy at the end, mean ± σ (n); seconds from "
    "the command to an accuracy that all runs reached, mean; peak of the GPU's memory"
)


def peers_table(records: Sequence[Record]) -> Table:
    """Return a table of the figures of each program."""
    return make_table(f"Whole trainings beside programs of others: {_PEERS_NOTE}", _PEERS, records)


def peer_settings(records: Sequence[Record]) -> Table:
    """Return a table of the settings of the programs in `peers`."""
    return make_table("Settings of the programs", _PEER_SETTINGS, records)
