"""Divide the time of a training step, fed by its loader, among the kinds of kernels."""

from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.measure.session import Session
from benchmarks.measure.workloads import Rig, StepWorkload, batches_ahead, build_train_loader
from benchmarks.publish.kernel_kinds import KernelKind
from benchmarks.publish.whole_runs import KernelTime
from pipeline.config import Config
from pipeline.profiling.kernel_kinds import Share, measure_shares
from pipeline.profiling.roofline import Work, measure_best, step_work_of
from pipeline.profiling.step_profiler import STEPS, achieved


def run(session: Session) -> None:
    config = session.config()
    splits, processes = session.splits(config), session.processes
    session.show("building and compiling the step")
    rig = Rig(config, splits, processes)
    loader = build_train_loader(config, splits, processes)
    ahead = 1 if session.quick else batches_ahead(config)
    workload = StepWorkload("kernels-by-share", rig, loader, min(ahead, session.steps))
    (timing,) = session.time([workload])
    session.show(f"profiling {STEPS} steps")
    workload.prepare()
    rows = measure_shares(workload.run, session.device, STEPS)
    session.record(
        "kernels_by_share",
        config.data.loader,
        config,
        timing,
        data_wait_fraction=workload.data_wait_fraction,
        kernels=_as_record(session, config, rig, rows),
    )
    session.print_tables()


def _as_record(session: Session, config: Config, rig: Rig, rows: Sequence[Share]) -> tuple[KernelKind, ...]:
    """Return the rows for a record, with the rates that the kinds of kernels achieve on a GPU."""
    splits, work, best = session.splits(config), {}, Work()
    if session.on_gpu:
        shape = (splits.num_channels, *splits.image_size)
        work = step_work_of(config, rig.state.model, shape, session.processes.shard.world_size)
        best = measure_best(session.device)
    return tuple(
        KernelKind(
            kind=row.kind,
            microseconds=row.microseconds,
            fraction=row.fraction,
            launches=row.launches,
            achieved=achieved(row, work, best),
            largest=tuple(KernelTime(**asdict(kernel)) for kernel in row.largest),
        )
        for row in rows
    )
