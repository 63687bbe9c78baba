"""One process of a group that `python -m benchmarks scaling` has started: time loader and step together, write the figures to a file."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import session
from benchmarks.options import add_arguments, listed
from benchmarks.workloads import Rig, StepWorkload, build_train_loader
from pipeline.caches import use_cache_folder
from pipeline.errors import TrainingError, UserError


class Figures(TypedDict):
    """Of one loader at one batch size.

    Attributes:
        batch_size: images per step, over all processes.
        step_s: seconds per step of each window, on the slowest process.
        data_wait_fraction, compile_s, peak_memory_bytes: as of `Record`, on the first process.
    """

    loader: str
    batch_size: int
    step_s: list[float]
    data_wait_fraction: float
    compile_s: float
    peak_memory_bytes: int


def measure(own: session.Session) -> None:
    """Time every batch size with every loader, in turn; the first process writes what was found."""
    options = own.options
    workloads: list[StepWorkload] = []
    for size in options.batch_sizes:
        base = own.config(f"data.batch_size={size}", "data.loader=synthetic")
        splits = own.splits(base)
        rig = Rig(base, splits, own.processes)
        for name in options.loaders:
            config = own.config(f"data.batch_size={size}", f"data.loader={name}")
            workloads.append(StepWorkload(name, rig, build_train_loader(config, splits, own.processes), own.lead_in(config)))
    found = [
        Figures(
            loader=workload.name,
            batch_size=workload.images_per_step,
            step_s=list(timing.step_s),
            data_wait_fraction=workload.data_wait_fraction,
            compile_s=workload.rig.compile_s,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
        )
        for workload, timing in zip(workloads, own.time(workloads), strict=True)
    ]
    if own.processes.is_main:
        options.output.write_text(json.dumps(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the exit codes are those of `python -m benchmarks`."""
    use_cache_folder()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling_worker", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--batch-sizes", type=listed(int), required=True, metavar="N,N,…", help="images per step, over all processes")
    parser.add_argument("--loaders", type=listed(), required=True, metavar="NAME,…", help="of data.loader")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the figures go, as JSON")
    try:
        session.run(measure, "scaling", parser.parse_intermixed_args(argv))
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
