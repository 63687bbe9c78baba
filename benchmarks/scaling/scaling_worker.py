"""One process of a group that `python -m benchmarks scaling` has started: time loader and step together, write the figures to a file."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from benchmarks.measure import session
from benchmarks.measure.options import add_arguments, listed
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from pipeline.data.sampling.batch_plan import Shard
from pipeline.distributed.processes import Processes
from pipeline.errors import TrainingError, UserError
from pipeline.process.cache_dirs import use_cache_folder

ONE, WEAK, STRONG, APART = "one process", "weak", "strong", "apart"


class Figures(TypedDict):
    """Of one variant with one loader.

    Attributes:
        batch_size: images per step, over all processes.
        step_s: seconds per step of each window, on the slowest process.
        data_wait_fraction, compile_s, peak_memory_bytes: as of `Record`, on the first process.
    """

    variant: str
    loader: str
    batch_size: int
    step_s: list[float]
    data_wait_fraction: float
    compile_s: float
    peak_memory_bytes: int


def variants(batch: int, processes: Processes) -> dict[str, tuple[int, Processes]]:
    """What is measured in a group: the images of a step, and the processes that share them.

    Args:
        batch: images of one process.
        processes: of the group. Apart, each takes itself for the only one: same time, same host, and nothing said to the others.
    """
    world_size = processes.shard.world_size
    if world_size == 1:
        return {ONE: (batch, processes)}
    return {
        WEAK: (world_size * batch, processes),
        STRONG: (batch, processes),
        APART: (batch, replace(processes, shard=Shard(0, 1))),
    }


def measure(own: session.Session) -> None:
    """Time every variant with every loader, in turn; the first process writes what was found."""
    workloads: list[StepWorkload] = []
    names: list[tuple[str, str]] = []
    for variant, (size, processes) in variants(own.config().data.batch_size, own.processes).items():
        base = own.config(f"data.batch_size={size}", "data.loader=synthetic")
        splits = own.splits(base)
        rig = Rig(base, splits, processes)
        for loader in own.options.loaders:
            config = own.config(f"data.batch_size={size}", f"data.loader={loader}")
            workloads.append(
                StepWorkload(
                    f"{variant}, {loader}",
                    rig,
                    build_train_loader(config, splits, processes),
                    own.lead_in(config),
                )
            )
            names.append((variant, loader))
    found = [
        Figures(
            variant=variant,
            loader=loader,
            batch_size=workload.images_per_step * (own.processes.shard.world_size if variant == APART else 1),
            step_s=list(timing.step_s),
            data_wait_fraction=workload.data_wait_fraction,
            compile_s=workload.rig.compile_s,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
        )
        for (variant, loader), workload, timing in zip(names, workloads, own.time(workloads), strict=True)
    ]
    if own.processes.is_main:
        own.options.output.write_text(json.dumps(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit codes are those of `python -m benchmarks`."""
    use_cache_folder()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling.scaling_worker", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--loaders", type=listed(), required=True, metavar="NAME,…", help="of data.loader")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="where the figures go, as JSON"
    )
    try:
        session.run(measure, "scaling", parser.parse_intermixed_args(argv))
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
