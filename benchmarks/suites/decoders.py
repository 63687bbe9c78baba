"""Time the decoders of streamed images on fewer and more CPU cores, and name the best one."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arguments import DECODERS
from benchmarks.measure.cores import pinned
from benchmarks.measure.kept_records import KeptRecords, key_of
from benchmarks.measure.options import merge
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Stopwatch, Workload, steps_lasting
from benchmarks.measure.workloads import LoaderWorkload, Rig, StepWorkload, batches_ahead, build_train_loader
from benchmarks.publish.records import Record
from benchmarks.suites.make_folder import FolderMaker
from pipeline.config import Config, DigitsData, FileData
from pipeline.data import ImageSet, load_splits
from pipeline.data.loaders.decoder import choose_decoder
from pipeline.errors import UserError

_CORES, _SHARES = (4, 8, 16), (0.35,)
_WINDOW_S = 2.0
_KEYS = {
    "engines": ("data.decoder=gpu", "data.hw_decoder_load=1.0"),
    "cuda": ("data.decoder=gpu", "data.hw_decoder_load=0.0"),
    "mixed": ("data.decoder=gpu", "data.hw_decoder_load=0.7"),
    "cpu": ("data.decoder=cpu",),
}


class Pinned(Workload):
    """A workload whose thread, and the threads that it starts, run on some of the cores.

    Args:
        workload: it has not been run yet: a loader starts its threads at its first batch.
        cores: numbers of the cores.
    """

    def __init__(self, workload: Workload, cores: Sequence[int]):
        super().__init__(workload.name, workload.images_per_step, workload.lead_in)
        self.inner, self._cores = workload, cores

    def prepare(self) -> None:
        self.inner.prepare()

    def run(self, steps: int) -> None:
        with pinned(self._cores):
            self.inner.run(steps)

    def finish(self, step_s: float) -> None:
        self.inner.finish(step_s)

    def check(self) -> None:
        self.inner.check()


@dataclass(frozen=True)
class _Variant:
    """One decoder on some cores."""

    name: str
    num_cores: int
    config: Config
    workload: Pinned

    @property
    def label(self) -> str:
        return f"{self.name}, {_cores(self.num_cores)}"


def _cores(count: int) -> str:
    return f"{count} core{'s' if count > 1 else ''}"


def _keys(name: str, num_cores: int) -> tuple[str, ...]:
    """Return the keys that choose a decoder, and its threads on this many cores."""
    kind, _, share = name.partition(" ")
    # one core is left to the thread of the step
    threads = f"data.num_threads={max(num_cores - 1, 1)}"
    return (*_KEYS.get(kind, ("data.decoder=both", f"data.gpu_share={share}")), threads)


def run(session: Session) -> None:
    if not session.quick:
        _time_all(session)
        return
    with tempfile.TemporaryDirectory() as folder:
        _use_made_folder(session, Path(folder))
        _time_all(session)


def _use_made_folder(session: Session, folder: Path) -> None:
    splits = load_splits(DigitsData(), seed=0)
    assert isinstance(splits.train, ImageSet)
    FolderMaker(folder, splits.train, splits.class_names, (60, 45), 1).make(20)
    keys = ["data.dataset=folder", f"data.root={folder}", "data.cache_below=8", "augment.cutout=0"]
    session.overrides = merge(session.overrides, [*keys, "augment.crop_padding=0", "data.image_size=16"])


def _time_all(session: Session) -> None:
    config = session.config()
    if not isinstance(config.data, FileData) or not session.streams(config):
        raise UserError("decoders: needs streamed images; set data.dataset=folder and data.root")
    names, counts, rig = _names(session), _core_counts(session), None
    kept = KeptRecords(session.options.keep, key_of(session, config, names, session.options.alone))
    done = kept.read()
    if not session.options.alone and any(_cores(count) not in done for count in counts):
        session.show("building and compiling the step")
        rig = Rig(config, session.splits(config), session.processes)
    best = []
    for count in counts:
        if (part := _cores(count)) in done:
            session.take(done[part])
        else:
            _time(session, rig, [_variant(session, rig, name, count) for name in names])
            if not session.is_stopped:
                kept.add(part, session.records[-len(names) :])
        fastest = max(session.records[-len(names) :], key=lambda record: record.rate or 0.0)
        best.append((count, fastest))
    session.print_tables()
    session.say(_sentence(best))
    choice = choose_decoder(config, session.device)
    session.say(f"A run with these keys on this machine takes the {choice.describe()}.")


def _core_counts(session: Session) -> list[int]:
    """Return the numbers of cores to use, at most those that this process has."""
    available = len(os.sched_getaffinity(0))
    asked = session.options.cores or _CORES
    counts = [count for count in asked if count <= available]
    for count in asked:
        if count > available and session.options.cores:
            session.say(f"{count} cores: left out, this process has {available}")
    return counts or [available]


def _names(session: Session) -> list[str]:
    """Return the decoders to time; without a GPU, it is the CPU's alone.

    Raises:
        UserError: only decoders of a GPU are asked for, and there is none; or shares for `both` without it.
    """
    asked = session.options.decoders or list(DECODERS)
    if session.options.gpu_shares and "both" not in asked:
        raise UserError("--gpu-shares: has no effect without both; add it to --decoders")
    names = [name for name in asked if session.on_gpu or name == "cpu"]
    if not names:
        raise UserError(f"--decoders: {', '.join(asked)} need a GPU; add cpu")
    if len(names) < len(asked):
        left_out = ", ".join(name for name in asked if name not in names)
        session.say(f"decoders {left_out}: left out, there is no GPU")
    shares = session.options.gpu_shares or _SHARES
    return [
        label
        for name in names
        for label in ([f"both {share:g}" for share in shares] if name == "both" else [name])
    ]


def _variant(session: Session, rig: Rig | None, name: str, num_cores: int) -> _Variant:
    config = session.config("data.loader=dali", *_keys(name, num_cores))
    loader = build_train_loader(config, session.splits(config), session.processes)
    ahead = 1 if session.quick else batches_ahead(config)
    if rig is None:
        workload: Workload = LoaderWorkload(name, loader, config.data.batch_size, ahead)
    else:
        workload = StepWorkload(name, rig, loader, ahead)
    cores = sorted(os.sched_getaffinity(0))[:num_cores]
    return _Variant(name, num_cores, config, Pinned(workload, cores))


def _time(session: Session, rig: Rig | None, variants: Sequence[_Variant]) -> None:
    """Time decoders on one number of cores, in turn, and keep the records."""
    session.show(_cores(variants[0].num_cores))
    workloads: list[Workload] = [variant.workload for variant in variants]
    if rig is not None:
        workloads.append(StepWorkload("step alone", rig, rig.synthetic(), lead_in=1))
    timings = session.time(workloads, [_steps(session, workload) for workload in workloads])
    for variant, timing in zip(variants, timings, strict=False):
        inner, label = variant.workload.inner, variant.label
        if isinstance(inner, StepWorkload):
            waited = inner.data_wait_fraction
            compared = timing.against(timings[-1])
            session.record("decoder", label, variant.config, timing, compared, data_wait_fraction=waited)
        else:
            session.record("decoder", label, variant.config, timing, model=None, compile_mode="none")


def _steps(session: Session, workload: Workload) -> int:
    if session.quick:
        return session.steps
    return session.options.steps or steps_lasting(workload, _WINDOW_S, Stopwatch(session.device))


def _sentence(best: Sequence[tuple[int, Record]]) -> str:
    """Name the best decoder for each number of cores, with the keys to set."""
    parts = []
    for count, record in best:
        name = record.variant.removesuffix(f", {_cores(count)}")
        keys = " ".join(_keys(name, count))
        parts.append(f"on {_cores(count)} {name} with {record.rate or 0.0:,.0f} images/sec ({keys})")
    return f"Best decoder: {'; '.join(parts)}."
