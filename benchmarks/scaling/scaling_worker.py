"""Time loader and step together in one process of a group that `python -m benchmarks scaling` starts."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.measure import session
from benchmarks.measure.options import add_arguments, listed
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from benchmarks.publish.strict import Strict
from benchmarks.scaling.averaging import build_with
from benchmarks.scaling.calibration import calibrate
from benchmarks.scaling.scaling_model import Calibration
from benchmarks.scaling.variants import ALONE, APART, EXTRA, ONE, STRONG, WEAK
from pipeline.commands.exit_code import exit_code_of, run_process
from pipeline.data.sampling.batch_plan import Shard
from pipeline.distributed.processes import Processes
from pipeline.process.cache_dirs import use_cache_folder
from pipeline.process.threads import wait_briefly
from pipeline.training.trainer import Trainer


class Measurement(Strict):
    """Figures of one variant with one loader.

    Attributes:
        batch_size: images per step, over all processes.
        step_s: seconds per step of each window, on the slowest process.
        data_wait_fraction, compile_s, peak_memory_bytes: as of `Record`, on the first process.
    """

    variant: str
    loader: str
    batch_size: int
    step_s: tuple[float, ...]
    data_wait_fraction: float
    compile_s: float
    peak_memory_bytes: int


# the files that a worker writes, as JSON; calibrations by the loader
MEASUREMENTS = TypeAdapter(list[Measurement])
CALIBRATIONS = TypeAdapter(dict[str, Calibration])
_CALIBRATED_STEPS = 200  # at most, that are timed one by one


def variants(batch: int, processes: Processes, extra: Sequence[str] = ()) -> dict[str, tuple[int, Processes]]:
    """Return the variants of a group: the images of a step, and the processes that share them.

    Args:
        batch: images of one process.
        extra: further variants of weak scaling.
        processes: of the group. Apart, each takes itself for the only one: they train at the same time on one
            host, without communication.
    """
    world_size = processes.shard.world_size
    if world_size == 1:
        return {ONE: (batch, processes)}
    return {
        WEAK: (world_size * batch, processes),
        **dict.fromkeys(extra, (world_size * batch, processes)),
        STRONG: (batch, processes),
        APART: (batch, replace(processes, shard=Shard(0, 1))),
    }


Workloads = dict[tuple[str, str], StepWorkload]  # by variant and loader


def _build(group: session.Session, parts: dict[str, tuple[int, Processes]]) -> Workloads:
    """Build the variants with every loader."""
    workloads: Workloads = {}
    for variant, (size, processes) in parts.items():
        is_apart = variant in (APART, ALONE)
        keys = [f"data.batch_size={size}", *(["model.sync_batchnorm=false"] if is_apart else [])]
        base = group.config(*keys, "data.loader=synthetic")
        splits = group.splits(base)
        otherwise = variant in (ALONE, *EXTRA.values())
        rig = Rig(base, splits, processes, partial(build_with, variant) if otherwise else Trainer.build)
        for name in group.options.loaders:
            config = group.config(*keys, f"data.loader={name}")
            loader = build_train_loader(config, splits, processes)
            workload = StepWorkload(f"{variant}, {name}", rig, loader, group.lead_in(config))
            workloads[variant, name] = workload
    return workloads


def measure(group: session.Session) -> None:
    """Time every variant with every loader, in turn; the first process writes the measurements."""
    extra = [EXTRA[word] for word in group.options.averaging]
    workloads = _build(group, variants(group.config().data.batch_size, group.processes, extra))
    timings = group.time(list(workloads.values()))
    measurements = [
        Measurement(
            variant=variant,
            loader=loader,
            batch_size=workload.images_per_step
            * (group.processes.shard.world_size if variant == APART else 1),
            step_s=timing.step_s,
            data_wait_fraction=workload.data_wait_fraction,
            compile_s=workload.rig.compile_s,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
        )
        for ((variant, loader), workload), timing in zip(workloads.items(), timings, strict=True)
    ]
    if group.processes.is_main:
        group.options.output.write_bytes(MEASUREMENTS.dump_json(measurements))


def calibrate_all(group: session.Session) -> None:
    """Measure what the prediction needs, with every loader; the first process writes the calibrations."""
    config = group.config()
    alone = (config.data.batch_size, replace(group.processes, shard=Shard(0, 1)))
    workloads = _build(group, {APART: alone, ALONE: alone})
    timings = dict(zip(workloads, group.time(list(workloads.values())), strict=True))
    calibrations: dict[str, Calibration] = {}
    for name in group.options.loaders:
        pair = [(APART, name), (ALONE, name)]
        apart, alone_too = (workloads[key] for key in pair)
        steps = min(group.windows * group.steps, _CALIBRATED_STEPS)
        calibrations[name] = calibrate(
            apart, alone_too, [timings[key] for key in pair], steps, config.model.sync_batchnorm
        )
    if group.processes.is_main:
        group.options.output.write_bytes(CALIBRATIONS.dump_json(calibrations))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit codes are those of `python -m benchmarks`."""
    use_cache_folder()
    wait_briefly()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.scaling_worker")
    add_arguments(parser)
    parser.add_argument("--loaders", type=listed(), required=True, metavar="NAME,…", help="of data.loader")
    parser.add_argument("--averaging", type=listed(str, EXTRA), default=[], metavar="NAME,…")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="file of the measurements, as JSON"
    )
    parser.add_argument("--calibrate", action="store_true", help="write calibrations, not measurements")
    options = parser.parse_intermixed_args(argv)

    def work() -> int:
        return session.run(calibrate_all if options.calibrate else measure, "scaling", options)

    return exit_code_of(work)


if __name__ == "__main__":
    run_process(main)
