"""Extends the measured weak scaling to more GPUs than were measured, by a model.

    step time on N GPUs = step time on one + fixed + exposed share × all-reduce(N)

`fixed` and the exposed share are fitted to one measurement: GPUs that exchange gradients, beside the same
GPUs at the same time without communication. benchmarks/README.md has the assumptions and limits of the model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure.cells import number, percent
from benchmarks.publish.records import Record
from benchmarks.publish.tables import Column, Table, make_table
from benchmarks.scaling.variants import APART, WEAK

GPUS_PER_HOST = 8
NVLINK = {"NVIDIA H200": 450e9}  # bytes/s in each direction, nominal
INFINIBAND = 50e9  # bytes/s in each direction of one GPU's link: 400 Gb/s, nominal
EFFECTIVE = 0.5  # of nominal, for messages of some tens of MiB
PARAMETERS = {"resnet18": 11_173_962, "resnet50": 25_557_032}  # with 10 and with 1,000 classes
_GRADIENT_BYTES = 4  # float32
_EXTRAPOLATED = (8, 64)


def all_reduce_s(
    num_bytes: float, num_gpus: int, nvlink: float, infiniband: float = EFFECTIVE * INFINIBAND
) -> float:
    """Return the seconds of an all-reduce, without latency.

    Inside one host it is a ring. Over several hosts it is a reduce-scatter inside each host, a ring over the
    hosts for the part of each GPU, and an all-gather inside each host.

    Args:
        num_bytes: that every GPU holds.
        num_gpus: of hosts with `GPUS_PER_HOST` each.
        nvlink: effective bytes/s of a GPU in each direction, inside a host.
        infiniband: the same between hosts.

    >>> all_reduce_s(44.7e6, 2, nvlink=225e9) * 1e3  # ms: 2 (N - 1) / N times bytes over bandwidth
    0.19866...
    >>> all_reduce_s(44.7e6, 64, nvlink=225e9, infiniband=25e9) * 1e3
    0.738...
    """
    hosts = -(-num_gpus // GPUS_PER_HOST)
    local = num_gpus // hosts
    inside = 2 * (local - 1) / local * num_bytes / nvlink
    between = 2 * (hosts - 1) / hosts * (num_bytes / local) / infiniband
    return inside + between


@dataclass(frozen=True)
class Fit:
    """The model, fitted to a measured weak scaling.

    Attributes:
        one_s: seconds per step on one GPU.
        apart_s: the same on the slowest of `num_gpus` GPUs that train at the same time, but not together;
            `one_s` if it was not measured.
        measured_s: the same on `num_gpus` GPUs together, each with the batch of the one.
        num_bytes: of all gradients.
        nvlink: effective bytes/s.
    """

    one_s: float
    apart_s: float
    measured_s: float
    num_gpus: int
    num_bytes: float
    nvlink: float

    @property
    def extra_s(self) -> float:
        """Seconds that a step takes longer together than apart; a negative difference is noise, and 0."""
        return max(self.measured_s - self.apart_s, 0.0)

    @property
    def exposed_share(self) -> float:
        """Fraction of the all-reduce that the backward pass did not hide, at most 1.

        It assumes that all of `extra_s` is communication.
        """
        return min(self.extra_s / self.reduce_s(self.num_gpus), 1.0)

    @property
    def fixed_s(self) -> float:
        """Seconds that are no communication, assumed to be the same for any number of GPUs.

        They are lost apart too, or they exceed the whole all-reduce.
        """
        return max(self.apart_s - self.one_s, 0.0) + max(self.extra_s - self.reduce_s(self.num_gpus), 0.0)

    def reduce_s(self, num_gpus: int) -> float:
        return all_reduce_s(self.num_bytes, num_gpus, self.nvlink)

    def step_s(self, num_gpus: int) -> tuple[float, float]:
        """Return the seconds per step on more GPUs, best and worst.

        At best the exposed share stays the same; at worst no more of the all-reduce is hidden than in the
        fit.

        >>> seconds = {"one_s": 10e-3, "apart_s": 10e-3, "measured_s": 10.1e-3}
        >>> fit = Fit(**seconds, num_gpus=2, num_bytes=45e6, nvlink=225e9)
        >>> round(fit.exposed_share, 3), fit.fixed_s
        (0.5, 0.0)
        >>> [round(1e3 * seconds, 3) for seconds in fit.step_s(8)]  # all-reduce: 0.2 ms on 2, 0.35 ms on 8
        [10.175, 10.25]
        """
        reduce_s = self.reduce_s(num_gpus)
        more_s = max(reduce_s - self.reduce_s(self.num_gpus), 0.0)
        best = self.one_s + self.fixed_s + self.exposed_share * reduce_s
        return best, best + (1 - self.exposed_share) * more_s


def fit(record: Record, apart: Record | None = None) -> Fit | None:
    """Return the model fitted to a record of weak scaling.

    The time on one GPU is that of the record's baseline. The time on several GPUs follows from the speed-up,
    whose two sides were measured one right after the other.

    Args:
        record: of weak scaling.
        apart: of the same GPUs, each training alone.

    Returns:
        None if the size of the network or the links of the GPU are not known here.
    """
    network, nvlink = record.network.partition(" with ")[0], NVLINK.get(record.gpu or "")
    if record.variant != WEAK or record.baseline is None or network not in PARAMETERS or nvlink is None:
        return None
    num_gpus = record.world_size
    one_s = record.batch_size / num_gpus / record.baseline.images_per_sec
    measured_s = one_s * num_gpus / record.baseline.ratio.median
    apart_s = one_s * num_gpus / apart.baseline.ratio.median if apart and apart.baseline else one_s
    num_bytes = _GRADIENT_BYTES * PARAMETERS[network]
    return Fit(one_s, apart_s, measured_s, num_gpus, num_bytes, EFFECTIVE * nvlink)


@dataclass(frozen=True)
class Extrapolation:
    """A row of the table: one fit, extended to a number of GPUs.

    Attributes:
        base: the record of the fit.
        checked: a record of as many GPUs, if they were measured.
    """

    base: Record
    fitted: Fit
    num_gpus: int
    checked: Record | None

    @property
    def step_ms(self) -> str:
        best, worst = self.fitted.step_s(self.num_gpus)
        return f"{number(1e3 * best)}–{number(1e3 * worst)}"

    @property
    def efficiency(self) -> str:
        best, worst = self.fitted.step_s(self.num_gpus)
        return f"{number(100 * self.fitted.one_s / worst, 1)}–{percent(self.fitted.one_s / best)}"

    @property
    def measured(self) -> str:
        baseline = self.checked.baseline if self.checked else None
        return percent(baseline.ratio.median / self.num_gpus if baseline else None)


_COLUMNS = (
    Column[Extrapolation]("model", "left", lambda row: row.base.model or ""),
    Column[Extrapolation]("loader", "left", lambda row: row.base.loader or ""),
    Column[Extrapolation](
        "batch per GPU", "right", lambda row: str(row.base.batch_size // row.base.world_size)
    ),
    Column[Extrapolation]("fitted on", "right", lambda row: f"{row.base.world_size} GPUs"),
    Column[Extrapolation]("exposed share", "right", lambda row: percent(row.fitted.exposed_share)),
    Column[Extrapolation]("fixed ms", "right", lambda row: number(1e3 * row.fitted.fixed_s)),
    Column[Extrapolation]("GPUs", "right", lambda row: str(row.num_gpus)),
    Column[Extrapolation](
        "all-reduce ms", "right", lambda row: number(1e3 * row.fitted.reduce_s(row.num_gpus))
    ),
    Column[Extrapolation]("step ms", "right", lambda row: row.step_ms),
    Column[Extrapolation]("efficiency", "right", lambda row: row.efficiency),
    Column[Extrapolation]("measured", "right", lambda row: row.measured),
)


def table(records: Sequence[Record]) -> Table:
    """Return step time and efficiency on 8 and 64 GPUs, fitted to weak scaling on the fewest GPUs."""
    weak: dict[tuple[object, ...], dict[int, Record]] = {}
    apart: dict[tuple[object, ...], dict[int, Record]] = {}
    for record in records:
        if fit(record) is not None:
            weak.setdefault(_workload(record), {})[record.world_size] = record
        elif record.variant == APART:
            apart.setdefault(_workload(record), {})[record.world_size] = record
    rows = [row for key, by_size in weak.items() for row in _extrapolate(by_size, apart.get(key, {}))]
    return make_table("Weak scaling by the model", _COLUMNS, rows)


def _workload(record: Record) -> tuple[object, ...]:
    per_gpu = record.batch_size // record.world_size
    images = (record.dataset, record.image_size, record.loader)
    return (record.model, *images, per_gpu, record.precision, record.compile_mode)


def _extrapolate(by_size: dict[int, Record], apart: dict[int, Record]) -> Iterator[Extrapolation]:
    base = by_size[min(by_size)]
    fitted = fit(base, apart.get(base.world_size))
    assert fitted is not None
    for num_gpus in _EXTRAPOLATED:
        if num_gpus > base.world_size:
            yield Extrapolation(base, fitted, num_gpus, by_size.get(num_gpus))
