"""A model on paper: what the measured weak scaling means for more GPUs than were measured.

    step time on N GPUs = step time on one + fixed + exposed share × all-reduce(N)

`fixed` and the exposed share are fitted to one measured point, of GPUs together and apart; benchmarks/README.md says what it assumes and
what it cannot know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure.cells import number, share
from benchmarks.publish.records import Record
from benchmarks.publish.tables import Table
from benchmarks.scaling.scaling_worker import APART, WEAK

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
    """Seconds of an all-reduce, without latency: a ring inside a host; over several a reduce-scatter inside each, a ring over the hosts
    for each GPU's share, and an all-gather inside each.

    Args:
        num_bytes: that every GPU holds.
        num_gpus: of hosts with `GPUS_PER_HOST` each.
        nvlink, infiniband: effective bytes/s of a GPU in each direction, inside a host and between hosts.

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
        apart_s: the same of the slowest of `num_gpus` GPUs that train at the same time, but not together; `one_s` where nobody measured it.
        measured_s: the same on `num_gpus` GPUs, each with the batch of the one.
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
        """What several GPUs take longer together than apart; a negative difference is noise, and 0."""
        return max(self.measured_s - self.apart_s, 0.0)

    @property
    def exposed_share(self) -> float:
        """Share of the all-reduce that the backward pass did not hide, were all of `extra_s` communication; at most 1."""
        return min(self.extra_s / self.reduce_s(self.num_gpus), 1.0)

    @property
    def fixed_s(self) -> float:
        """What is no communication, taken to be the same for any number: lost apart too, or more than the whole all-reduce."""
        return max(self.apart_s - self.one_s, 0.0) + max(self.extra_s - self.reduce_s(self.num_gpus), 0.0)

    def reduce_s(self, num_gpus: int) -> float:
        return all_reduce_s(self.num_bytes, num_gpus, self.nvlink)

    def step_s(self, num_gpus: int) -> tuple[float, float]:
        """Seconds per step on more GPUs: where the exposed share stays as it is, and where nothing more is hidden than in the fit.

        >>> fit = Fit(one_s=10e-3, apart_s=10e-3, measured_s=10.1e-3, num_gpus=2, num_bytes=45e6, nvlink=225e9)
        >>> round(fit.exposed_share, 3), fit.fixed_s
        (0.5, 0.0)
        >>> [round(1e3 * seconds, 3) for seconds in fit.step_s(8)]  # the all-reduce takes 0.2 ms on 2 GPUs, 0.35 ms on 8
        [10.175, 10.25]
        """
        reduce_s = self.reduce_s(num_gpus)
        more_s = max(reduce_s - self.reduce_s(self.num_gpus), 0.0)
        best = self.one_s + self.fixed_s + self.exposed_share * reduce_s
        return best, best + (1 - self.exposed_share) * more_s


def fit(record: Record, apart: Record | None = None) -> Fit | None:
    """The model fitted to a record of weak scaling; None where the size of the network or the links of the GPU are not known here.

    APART is of the same GPUs, each for itself.

    The time on one GPU is that of the record's baseline; the time on several follows from the speed-up, whose two sides were measured
    one right after the other.
    """
    network, nvlink = (
        (record.model or "").partition(",")[0].partition(" with ")[0],
        NVLINK.get(record.gpu or ""),
    )
    if record.variant != WEAK or record.baseline is None or network not in PARAMETERS or nvlink is None:
        return None
    one_s = record.batch_size / record.world_size / record.baseline.images_per_sec
    measured_s, apart_s = (
        one_s * record.world_size / measured.baseline.ratio.median
        if measured and measured.baseline
        else one_s
        for measured in (record, apart)
    )
    return Fit(
        one_s,
        apart_s,
        measured_s,
        record.world_size,
        _GRADIENT_BYTES * PARAMETERS[network],
        EFFECTIVE * nvlink,
    )


def table(records: Sequence[Record]) -> Table:
    """Step time and efficiency on 8 and 64 GPUs, for every record of weak scaling on the fewest GPUs that there is one for."""
    weak: dict[tuple[object, ...], dict[int, Record]] = {}
    apart: dict[tuple[object, ...], dict[int, Record]] = {}
    for record in records:
        per_gpu = record.batch_size // record.world_size
        key = (
            record.model,
            record.dataset,
            record.image_size,
            record.loader,
            per_gpu,
            record.precision,
            record.compile_mode,
        )
        if fit(record) is not None:
            weak.setdefault(key, {})[record.world_size] = record
        elif record.variant == APART:
            apart.setdefault(key, {})[record.world_size] = record
    rows = [row for key, by_size in weak.items() for row in _rows(by_size, apart.get(key, {}))]
    header = (
        *("model", "loader", "batch per GPU", "fitted on", "exposed share", "fixed ms"),
        *("GPUs", "all-reduce ms", "step ms", "efficiency", "measured"),
    )
    return Table("Weak scaling by the model", header, tuple(rows), 2)


def _rows(by_size: dict[int, Record], apart: dict[int, Record]) -> list[tuple[str, ...]]:
    base = by_size[min(by_size)]
    fitted = fit(base, apart.get(base.world_size))
    assert fitted is not None
    rows = []
    for num_gpus in _EXTRAPOLATED:
        if num_gpus > base.world_size:
            best, worst = fitted.step_s(num_gpus)
            checked = by_size[num_gpus].baseline if num_gpus in by_size else None
            rows.append(
                (
                    *(
                        base.model or "",
                        base.loader or "",
                        str(base.batch_size // base.world_size),
                        f"{base.world_size} GPUs",
                    ),
                    *(
                        share(fitted.exposed_share),
                        number(1e3 * fitted.fixed_s),
                        str(num_gpus),
                        number(1e3 * fitted.reduce_s(num_gpus)),
                    ),
                    f"{number(1e3 * best)}–{number(1e3 * worst)}",
                    f"{number(100 * fitted.one_s / worst, 1)}–{share(fitted.one_s / best)}",
                    share(checked.ratio.median / num_gpus) if checked else "",
                )
            )
    return rows
