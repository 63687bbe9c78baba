"""One config: its loader alone, its step alone and both together, in one table, with the bottleneck named."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from benchmarks.measure.bottleneck import Measured, name_bottleneck
from benchmarks.measure.ceiling import flops_per_image
from benchmarks.measure.cells import against, count, memory, number, share, significant, spread
from benchmarks.measure.describe import describe_loader
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Stopwatch, Timing, Workload, steps_lasting
from benchmarks.measure.workloads import LoaderWorkload, Rig, StepWorkload, batches_ahead, build_train_loader
from benchmarks.publish.tables import Table
from pipeline.distributed.processes import Processes
from pipeline.profiling.roofline import matmul_flops_per_s
from pipeline.training.build import compile_mode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


_HEADER = (
    "",
    "images/sec",
    "p10–p90 (n)",
    "step ms",
    "TFLOP/s",
    "of peak",
    "peak memory",
    "data wait",
    "compile s",
)

_LOADER_WINDOW_S = 0.3


class _Unconnected:
    """Stands in for accelerate where a model is to run without the other processes."""

    def prepare_model(self, model: nn.Module) -> nn.Module:
        return model


def unconnected(processes: Processes) -> Processes:
    """The same process and share of the batch, with a model that exchanges nothing."""
    return replace(processes, accelerator=_Unconnected())


def run(session: Session) -> None:
    config = session.config()
    splits, processes = session.splits(config), session.processes
    session.show("measuring what this machine can do")
    flops = flops_per_image(config.model, splits.num_classes, splits.image_size, splits.num_channels)
    peak = matmul_flops_per_s(session.device) * processes.shard.world_size
    session.show("building and compiling the step")
    rig = Rig(config, splits, processes)
    loader = build_train_loader(config, splits, processes)
    alone_loader = LoaderWorkload(
        "loader alone", loader, config.data.batch_size, 1 if session.quick else batches_ahead(config)
    )
    alone_step = StepWorkload("step alone", rig, rig.synthetic(), lead_in=1)
    together = StepWorkload("end to end", rig, loader, session.lead_in(config))
    workloads: list[Workload] = [alone_loader, alone_step, together]
    if processes.shard.world_size > 1:
        session.show("building the step without communication")
        silent = Rig(config, splits, unconnected(processes))
        workloads.append(StepWorkload("step, no communication", silent, rig.synthetic(), lead_in=1))
    steps = [session.steps for _ in workloads]
    if not session.quick:  # loaders deliver in bursts: give theirs a window of many
        steps[0] = max(
            session.steps, steps_lasting(alone_loader, _LOADER_WINDOW_S, Stopwatch(session.device))
        )
    timings = session.time(workloads, steps)
    medians = [timing.images_per_sec.median for timing in timings]
    compared = timings[2].against(timings[1])
    measured = Measured(
        loader=medians[0],
        step=medians[1],
        end_to_end=medians[2],
        ratio=compared.ratio,
        alone=medians[-1] if len(medians) > 3 else medians[1],
        host_ms=alone_step.host_ms() if session.on_gpu else 0.0,
        step_ms=timings[1].step_ms,
        peak_share=flops * medians[1] / peak,
        compile_mode=compile_mode(config.compile, session.device),
        on_gpu=session.on_gpu,
        streamed=session.streams(config),
    )
    rows = [_row(timing, workload, flops, peak) for timing, workload in zip(timings, workloads, strict=True)]
    where = f"{config.model.name}, batch {config.data.batch_size}, {config.precision.mode}, compile {measured.compile_mode}"
    session.print(Table(f"{session.recipe}: {where}", _HEADER, tuple(rows)))
    _record(session, timings, rig, together, flops, peak)
    session.say(
        f"end to end is {against(compared)}; peak: {peak / 1e12:.3g} TFLOP/s, by a large matrix product"
    )
    session.say(name_bottleneck(measured, config))


def _row(timing: Timing, workload: Workload, flops: float, peak: float) -> tuple[str, ...]:
    rate = timing.images_per_sec
    cells = (timing.name, count(rate.median), spread(rate), number(timing.step_ms))
    if not isinstance(workload, StepWorkload):
        return (*cells, "", "", "", "", "")
    rig = workload.rig
    waits = share(workload.data_wait_fraction)
    return (
        *cells,
        significant(flops * rate.median / 1e12),
        share(flops * rate.median / peak),
        memory(rig.peak_memory_bytes),
        waits,
        number(rig.compile_s, 1),
    )


def _record(
    session: Session, timings: Sequence[Timing], rig: Rig, together: StepWorkload, flops: float, peak: float
) -> None:
    """Keep three records: of the loader, the step, and both."""
    config = session.config()
    loader, step, end_to_end = timings[:3]

    def of_step(timing: Timing) -> dict[str, Any]:
        achieved = flops * timing.images_per_sec.median
        sizes = {"peak_memory_bytes": rig.peak_memory_bytes, "compile_s": rig.compile_s}
        return {**sizes, "tflops": achieved / 1e12, "peak_share": achieved / peak}

    name = describe_loader(config)
    session.record("loader", name, config, loader, model=None, compile_mode="none")
    session.record("step", "step", session.config("data.loader=synthetic"), step, **of_step(step))
    waits = {"data_wait_fraction": together.data_wait_fraction}
    session.record(
        "end_to_end",
        config.data.loader,
        config,
        end_to_end,
        end_to_end.against(step),
        **of_step(end_to_end),
        **waits,
    )
