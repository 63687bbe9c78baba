"""Defines, writes and reads the records of measurements: JSON lines, append-only.

Each record holds all that is needed to repeat its measurement. The files are
`benchmarks/results/<gpu>/<benchmark>.jsonl`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from pydantic import Field, ValidationError

from benchmarks.publish.kernel_kinds import KernelKind
from benchmarks.publish.peer_runs import PeerRuns
from benchmarks.publish.strict import Strict
from benchmarks.publish.whole_runs import WholeRuns
from pipeline.errors import UserError

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results"

Benchmark = Literal[
    "loader",
    "decoder",
    "step",
    "end_to_end",
    "kernel",
    "kernels_by_share",
    "ablation",
    "startup",
    "neighbour",
    "saving",
    "scaling",
    "peer",
    "peers",
    "recipe",
    "time_to_accuracy",
]


class Spread(Strict):
    """Median, 10th and 90th percentile of n measurements."""

    median: float
    p10: float
    p90: float
    n: int = Field(ge=1)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of the values.

        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        median, p10, p90 = np.quantile(values, [0.5, 0.1, 0.9]).tolist()
        return cls(median=median, p10=p10, p90=p90, n=len(values))


class Baseline(Strict):
    """The variant that a record is compared with, timed in the same run.

    Attributes:
        variant: name of the baseline.
        images_per_sec: its median.
        ratio: throughput of the record over that of the baseline, of windows timed one right after the other.
    """

    variant: str
    images_per_sec: float
    ratio: Spread


class Predicted(Strict):
    """A throughput that was predicted before it was measured.

    Attributes:
        low, high: bounds, for parts that could not be determined.
    """

    images_per_sec: float
    low: float
    high: float


class Setting(Strict):
    """The fields of a record that a config determines; most of them identify a row of a table.

    Attributes:
        loader: backend; beside those of `data.loader` the comparisons `dali-naive`, `airbench`, `torchvision`
            and `timm`.
        augment: augmentation of a training image, in words; None if nothing is loaded.
        batch_size: images per step, over all processes.
        compile_mode: resolved, never `auto`.
        config: every key of the run's config. A dict: the config of an older version must load too.
    """

    model: str | None
    image_size: int
    dataset: str
    loader: str | None
    augment: str | None
    batch_size: int
    world_size: int
    precision: str
    channels_last: bool
    compile_mode: str
    config: dict[str, Any]
    config_hash: str


class Machine(Strict):
    """Code, versions and hardware: they must agree for two runs to measure the same thing."""

    commit: str | None
    dirty: bool | None
    gpu: str | None
    gpu_count: int
    power_limit_w: float | None
    driver: str | None
    cuda: str | None
    torch: str
    dali: str | None
    python: str
    cpu_cores: int


class Record(Machine, Setting):
    """One measurement.

    Attributes:
        variant: the thing that was timed; with the fields down to `compile_mode` of `Setting` it identifies a
            row.
        num_classes: of a kernel's logits; None elsewhere.
        images_per_sec: over windows; None if the time of one event is measured (`startup`).
        step_ms: median time of a step, or of one call of a kernel, in milliseconds.
        peak_memory_bytes: peak memory of this variant, as torch counts it (on the CPU: of the whole process
            so far).
        accuracy: on the test set, a fraction; mean of `accuracy_n` runs of `epochs` epochs with standard
            deviation `accuracy_std`. It is that of the last step, of raw weights and one view.
        flip_tta_accuracy: of the same runs, by the mean of the logits of each image and its mirror image.
        views: name of other test-time views, as `Views.name` in `pipeline.config`; None if there are none.
        views_accuracy: of the same runs, with these views.
        seeds: of these runs.
        data: the images in words, because `folder` as `dataset` does not name them: for a recipe as given,
            elsewhere from `about.json` in the folder.
        parameters: of the network.
        compile_s: seconds from the first step to the end of compiling, choosing algorithms and capturing.
        train_s: seconds of all training steps, without compiling, evaluation and saving; median of the runs
            that `images_per_sec` is of.
        first_step_s: seconds from the command to the end of the first optimizer step; median of
            `first_step_n` starts.
        whole_s: seconds from the command to its end; median of these starts.
        timeline: seconds of the parts of a run, from the command to its end; median of these starts.
        epochs_to_pay: epochs after which the compile time is paid back; None if it never is.
        data_wait_fraction: fraction of the time in which the device waited for data.
        tflops: achieved arithmetic, 1e12 operations per second, of forward and backward, over all GPUs.
        peak_share: `tflops` per GPU over the rate of a large matrix product in the same run.
        whole_runs: the trainings that `time_to_accuracy` timed; None elsewhere.
        planned: the number of windows, starts or rounds that were asked for, if the benchmark was stopped
            before it had measured them all; None if it is complete, and for `whole_runs` and `peer_runs`,
            which have their own.
        predicted: images per second, from measurements on fewer processes; None elsewhere.
        peer_runs: the trainings that `peers` timed; None elsewhere.
        kernels: a step divided among kinds of kernels, by `kernels_by_share`; None elsewhere.
    """

    benchmark: Benchmark
    variant: str
    num_classes: int | None = None
    images_per_sec: Spread | None
    step_ms: float | None
    peak_memory_bytes: int | None
    accuracy: float | None = None
    accuracy_std: float | None = None
    accuracy_n: int | None = None
    flip_tta_accuracy: float | None = None
    views: str | None = None
    views_accuracy: float | None = None
    epochs: float | None = None
    seeds: tuple[int, ...] | None = None
    data: str | None = None
    parameters: int | None = None
    baseline: Baseline | None = None
    compile_s: float | None = None
    train_s: float | None = None
    first_step_s: float | None = None
    first_step_n: int | None = None
    whole_s: float | None = None
    timeline: dict[str, float] | None = None
    epochs_to_pay: float | None = None
    data_wait_fraction: float | None = None
    tflops: float | None = None
    peak_share: float | None = None
    whole_runs: WholeRuns | None = None
    planned: int | None = None
    predicted: Predicted | None = None
    peer_runs: PeerRuns | None = None
    kernels: tuple[KernelKind, ...] | None = None
    utc: str
    command: str

    @property
    def folder(self) -> str:
        """Name of the folder of the record's file."""
        return gpu_slug(self.gpu)

    @property
    def network(self) -> str:
        """The model without its kernels: `resnet18` of `resnet18, fused norm`."""
        return (self.model or "").partition(",")[0]

    @property
    def rate(self) -> float | None:
        """Median images per second."""
        return self.images_per_sec.median if self.images_per_sec else None

    @property
    def is_complete(self) -> bool:
        """False if the benchmark was stopped before it had measured all that was asked for."""
        whole = (runs for runs in (self.whole_runs, self.peer_runs) if runs is not None)
        return self.planned is None and all(runs.is_complete for runs in whole)

    @property
    def comparison(self) -> tuple[Any, ...]:
        """A key that the records of `peers` share if their programs can be compared."""
        data = self.data or self.dataset
        network = self.network.rpartition("/")[2]  # without the library that it comes from
        task = (network, data, self.image_size, self.batch_size, self.epochs)
        return (self.folder, self.benchmark, *task)

    @property
    def identity(self) -> tuple[Any, ...]:
        """A key that two records share if they measure the same thing; tables show the newer one.

        The kernels of a recipe count in `step` and `ablation` only, which ask for them. Elsewhere a recipe
        that has changed supersedes itself. A record of `recipe` is identified by its data set alone.
        """
        if self.benchmark == "recipe":
            return (self.folder, self.benchmark, self.variant, self.data, self.world_size)
        if self.whole_runs is not None:
            runs = self.whole_runs
            return (self.folder, self.benchmark, self.variant, self.dataset, self.data, runs.target)
        if self.peer_runs is not None:
            return (*self.comparison, self.variant)
        with_kernels = self.benchmark in ("step", "ablation") or self.model is None
        return (
            self.folder,
            self.benchmark,
            self.variant,
            self.model if with_kernels else self.network,
            self.image_size,
            self.dataset,
            self.data,
            self.loader,
            self.augment,
            self.batch_size,
            self.world_size,
            self.precision,
            self.channels_last,
            self.compile_mode,
            self.num_classes,
        )


class RecordKeywords(TypedDict, total=False):
    """The fields of `Record` that a benchmark may give beside those that follow from its config."""

    images_per_sec: Spread | None
    step_ms: float | None
    model: str | None
    image_size: int
    dataset: str
    loader: str | None
    world_size: int
    precision: str
    channels_last: bool
    compile_mode: str
    num_classes: int | None
    peak_memory_bytes: int | None
    accuracy: float | None
    accuracy_std: float | None
    accuracy_n: int | None
    epochs: float | None
    seeds: tuple[int, ...] | None
    data: str | None
    parameters: int | None
    compile_s: float | None
    first_step_s: float | None
    first_step_n: int | None
    whole_s: float | None
    timeline: dict[str, float] | None
    epochs_to_pay: float | None
    data_wait_fraction: float | None
    tflops: float | None
    peak_share: float | None
    whole_runs: WholeRuns | None
    planned: int | None
    predicted: Predicted | None
    peer_runs: PeerRuns | None
    kernels: tuple[KernelKind, ...] | None


def gpu_slug(name: str | None) -> str:
    """Return the name of the folder for a GPU.

    >>> gpu_slug("NVIDIA H200"), gpu_slug(None)
    ('nvidia-h200', 'cpu')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if name else "cpu"


def append(records: Iterable[Record], results: Path = RESULTS) -> list[Path]:
    """Add records to their files.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for record in records:
        path = results / record.folder / f"{record.benchmark}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        first = {"benchmark": record.benchmark, "variant": record.variant}  # a line begins with its subject
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(first | record.model_dump(mode="json")) + "\n")
        if path not in written:
            written.append(path)
    return written


def read(results: Path = RESULTS) -> list[Record]:
    """Read all records, oldest first within a file.

    Raises:
        UserError: a line is no record, or stands in the wrong file; names file and line.
    """
    return [
        _parse(line, path, number, results)
        for path in sorted(results.glob("*/*.jsonl"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


def _parse(line: str, path: Path, number: int, results: Path) -> Record:
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}:{number}: not a record ({field}: {first['msg']}); remove the line or measure again"
        ) from None
    right = Path(record.folder, f"{record.benchmark}.jsonl")
    if path.relative_to(results) != right:
        raise UserError(f"{path}:{number}: this record belongs in {right}; move the line there")
    return record


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each identity, in the order of the records.

    A record of a benchmark that was stopped early does not supersede a complete one.
    """
    last: dict[tuple[Any, ...], Record] = {}
    for record in records:
        before = last.get(record.identity)
        if before is not None and before.is_complete and not record.is_complete:
            continue
        last.pop(record.identity, None)
        last[record.identity] = record
    return list(last.values())


def newest_of(benchmark: Benchmark, folder: str, records: Iterable[Record]) -> list[Record]:
    """Return the newest records of a benchmark that have a throughput, of the machine with this folder."""
    return [
        record
        for record in newest(records)
        if record.benchmark == benchmark and record.folder == folder and record.images_per_sec
    ]
