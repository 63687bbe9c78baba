"""Records of measurements: JSON lines, append-only, each with all that is needed to repeat it.

They are kept in `benchmarks/results/<gpu>/<benchmark>.jsonl`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import UserError

FOLDER = Path(__file__).parents[1]
RESULTS = FOLDER / "results"

Benchmark = Literal[
    "loader", "step", "end_to_end", "kernel", "ablation", "startup", "saving", "scaling", "peer", "recipe"
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spread(_Frozen):
    """Median, 10th and 90th percentile of n measurements."""

    median: float
    p10: float
    p90: float
    n: int = Field(ge=1)

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """
        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        median, p10, p90 = np.quantile(values, [0.5, 0.1, 0.9]).tolist()
        return cls(median=median, p10=p10, p90=p90, n=len(values))


class Baseline(_Frozen):
    """What a variant is compared with: another one, timed in the same run.

    Attributes:
        variant: name of the other one.
        images_per_sec: its median.
        ratio: this one's throughput over the other's, of windows timed one right after the other.
    """

    variant: str
    images_per_sec: float
    ratio: Spread


class Record(_Frozen):
    """One measurement.

    Attributes:
        variant: what was timed; with the fields down to `compile_mode` it identifies a row of a table.
        loader: backend; beside those of `data.loader` the comparisons `dali-naive`, `airbench` and `torchvision`.
        augment: what was applied to a training image, in words; None where nothing is loaded.
        batch_size: images per step, over all processes.
        compile_mode: resolved, never `auto`.
        num_classes: of a kernel's logits; None elsewhere.
        images_per_sec: over windows; None where the time of one event is measured (`startup`).
        step_ms: median time of a step, or of one call of a kernel, in milliseconds.
        peak_memory_bytes: most that torch held for this variant (on the CPU: that the process ever held).
        accuracy: on the test set, a fraction; mean of `accuracy_n` runs of `epochs` epochs with standard deviation `accuracy_std`. Of the
            last step, raw weights and one view.
        flip_tta_accuracy: of the same runs, the mean of the logits of each image and its mirror image.
        seeds: of these runs.
        data: the data set in words, where `dataset` is not enough: `folder` says nothing of what is in it.
        parameters: of the network.
        compile_s: seconds from the first step until compiling, choosing algorithms and capturing were over.
        train_s: seconds of all training steps, without compiling, evaluation and saving; median of the runs that `images_per_sec` is of.
        first_step_s: seconds from the command to the end of the first optimizer step; median of `first_step_n` starts.
        epochs_to_pay: epochs after which the compile time has been won back; None where it never is.
        data_wait_fraction: share of the time in which the device waited for data.
        tflops: achieved arithmetic, 1e12 operations per second, of forward and backward, over all GPUs.
        peak_share: `tflops` per GPU over the rate of a large matrix product in the same run.
        config: every key of the run's config.
    """

    benchmark: Benchmark
    variant: str
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
    num_classes: int | None = None
    images_per_sec: Spread | None
    step_ms: float | None
    peak_memory_bytes: int | None
    accuracy: float | None = None
    accuracy_std: float | None = None
    accuracy_n: int | None = None
    flip_tta_accuracy: float | None = None
    epochs: float | None = None
    seeds: tuple[int, ...] | None = None
    data: str | None = None
    parameters: int | None = None
    baseline: Baseline | None = None
    compile_s: float | None = None
    train_s: float | None = None
    first_step_s: float | None = None
    first_step_n: int | None = None
    epochs_to_pay: float | None = None
    data_wait_fraction: float | None = None
    tflops: float | None = None
    peak_share: float | None = None
    config: dict[str, Any]
    config_hash: str
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
    utc: str
    command: str

    @property
    def folder(self) -> str:
        """Name of the folder that it is kept in."""
        return gpu_slug(self.gpu)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes two records two measurements of the same thing, of which tables show the newer.

        Which kernels a recipe uses is the question of `step` and `ablation`; elsewhere a recipe that has changed supersedes itself, and
        what the recipe itself achieves is one thing on each data set, whatever has changed in it.
        """
        if self.benchmark == "recipe":
            return (self.folder, self.benchmark, self.variant, self.data, self.world_size)
        model = (
            self.model
            if self.benchmark in ("step", "ablation") or self.model is None
            else self.model.partition(",")[0]
        )
        return (
            self.folder,
            self.benchmark,
            self.variant,
            model,
            self.image_size,
            self.dataset,
            self.loader,
            self.augment,
            self.batch_size,
            self.world_size,
            self.precision,
            self.channels_last,
            self.compile_mode,
            self.num_classes,
        )


def gpu_slug(name: str | None) -> str:
    """
    >>> gpu_slug("NVIDIA H200"), gpu_slug(None)
    ('nvidia-h200', 'cpu')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if name else "cpu"


def append(records: Iterable[Record], results: Path = RESULTS) -> list[Path]:
    """Add records to the files that they belong to.

    Returns:
        The files written.
    """
    written: list[Path] = []
    for record in records:
        path = results / record.folder / f"{record.benchmark}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.model_dump(mode="json")) + "\n")
        if path not in written:
            written.append(path)
    return written


def read(results: Path = RESULTS) -> list[Record]:
    """All records, oldest first within a file.

    Raises:
        UserError: a line is no record, or stands in another file than its own; names file and line.
    """
    records = []
    for path in sorted(results.glob("*/*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = Record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise UserError(
                    f"{path}:{number}: not a record ({where}: {first['msg']}); remove the line or measure again"
                ) from None
            if path.relative_to(results) != Path(record.folder, f"{record.benchmark}.jsonl"):
                raise UserError(
                    f"{path}:{number}: this record belongs in {record.folder}/{record.benchmark}.jsonl; move the line there"
                )
            records.append(record)
    return records


def newest(records: Iterable[Record]) -> list[Record]:
    """Of the records of the same thing the last one, in the order of these."""
    last: dict[tuple[Any, ...], Record] = {}
    for record in records:
        last.pop(record.identity, None)
        last[record.identity] = record
    return list(last.values())
