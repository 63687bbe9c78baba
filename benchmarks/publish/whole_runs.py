"""Defines the part of a record that holds whole trainings: the accuracy and the time of each seed."""

from statistics import fmean, stdev

from pydantic import Field

from benchmarks.publish.strict import Strict


class TimedRun(Strict):
    """One training.

    Attributes:
        seed: of the training.
        seconds: from the first work on the training images to the last view of the test images.
        accuracies: on the test set, fractions of 1, by label: `one view`, and those of
            `EvalFigures.other_accuracies`.
    """

    seed: int
    seconds: float
    accuracies: dict[str, float]


class GpuState(Strict):
    """Clocks, temperature and power of a GPU at one moment, as nvidia-smi reports them; None if it does not.

    Attributes:
        sm_mhz, memory_mhz: clock rates.
        max_sm_mhz: highest clock rate of the multiprocessors.
        temperature_c: degrees Celsius.
        power_w: watts.
    """

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    max_sm_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class FloorPart(Strict):
    """The least work of a training in one kind of kernel.

    Attributes:
        kind: of the kernels; `evaluation` is all that the network does in it.
        flops: floating-point operations.
        num_bytes: bytes read and written.
        seconds: the least time of its layers, each as long as its operations or its bytes take.
    """

    kind: str
    flops: float
    num_bytes: float
    seconds: float


class Floor(Strict):
    """The least work of a training (`benchmarks/measure/run_floor.py`), and its least time.

    Attributes:
        flops_per_s: rate of a large matrix product, measured in the same process.
        bytes_per_s: bytes read and written in a large copy, likewise.
        parts: by kind of kernel, the longest first.
    """

    flops_per_s: float
    bytes_per_s: float
    parts: tuple[FloorPart, ...]

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.parts)

    @property
    def num_bytes(self) -> float:
        return sum(part.num_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)


class KernelTime(Strict):
    """The time of all launches of one kernel (`KernelShare` in `pipeline/profiling/kernel_shares.py`)."""

    name: str
    microseconds: float
    fraction: float
    launches: float


class KernelTable(Strict):
    """The kernels of one kind of work, such as a step.

    Attributes:
        work: in words.
        microseconds: of the work, between two events of the device, without the profiler.
        rows: one for each kernel, the largest share first.
    """

    work: str
    microseconds: float
    rows: tuple[KernelTime, ...]


class WholeRuns(Strict):
    """Trainings with different seeds, one after the other in one process.

    Attributes:
        figure: the label of the accuracy that is compared with the target.
        target: a fraction of 1; None if no target was given.
        p: of the one-sided t-test that the mean accuracy is above the target; None without a target, and for
            one run.
        runs: in their order.
        planned: number of runs that were asked for.
        wait_s: seconds from the start of the process to the end of the first run; None for a peer that
            has trained no network.
        cold_wait_s, warm_wait_s: the same of two processes that were started for it, the first with empty
            compile caches, the second with those of the first; None without `--waits`.
        compiled: number of kernels that this process compiled and wrote to the caches; 0 if the caches were
            warm, None if it is not known.
        source_hash: of the source files and the recipe (`hash_of_sources`).
        gpu_before, gpu_after: state of the GPU before the first run and after the last one; None on the CPU.
        floor: the least work of one training; None for a peer, and in older records.
        kernels: of a step and of the evaluation, with `--kernels`.
    """

    figure: str
    target: float | None
    p: float | None
    runs: tuple[TimedRun, ...] = Field(min_length=1)
    planned: int
    wait_s: float | None
    compiled: int | None
    source_hash: str
    gpu_before: GpuState | None
    gpu_after: GpuState | None
    floor: Floor | None = None
    kernels: tuple[KernelTable, ...] = ()
    cold_wait_s: float | None = None
    warm_wait_s: float | None = None

    @property
    def is_complete(self) -> bool:
        """False if the runs were stopped early."""
        return len(self.runs) == self.planned

    @property
    def seconds(self) -> tuple[float, ...]:
        return tuple(run.seconds for run in self.runs)

    def accuracies(self, figure: str) -> tuple[float, ...]:
        """Return the accuracy of each run with this label."""
        return tuple(run.accuracies[figure] for run in self.runs)


def mean_and_deviation(values: tuple[float, ...]) -> tuple[float, float | None]:
    """Return the mean, and the standard deviation with n - 1; None for one value.

    >>> mean_and_deviation((1.0, 3.0))
    (2.0, 1.4142135623730951)
    """
    return fmean(values), stdev(values) if len(values) > 1 else None
