"""Weak and strong scaling over the GPUs of this host: loader and step together on one process and on several.

data.batch_size is the batch of one process. Weak scaling gives each of N processes that many images, strong
scaling divides them among the processes. Apart, N processes train a network each, at the same time, and the
slowest counts: the loss there is not due to communication. Every measurement is a new process group, started
by `accelerate launch`. The groups take turns (1, N, 1, N, …), and within a group the variants do. Speed-up is
the images/sec of all N processes over those of the one process of the same round.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.arguments import ROUNDS
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing, describe_left
from benchmarks.publish.records import Baseline, Spread
from benchmarks.scaling.scaling_worker import MEASUREMENTS, Measurement
from benchmarks.scaling.variants import APART, ONE
from pipeline.config import check_batches
from pipeline.errors import TrainingError, UserError

_CONFIGS = Path(__file__).parents[2] / "configs/accelerate"
_QUICK_ROUNDS = 1
_LAST_LINES = 8
_TORCHRUN = "torch/distributed/elastic/multiprocessing"  # in the first line of its report of a failure


class Key(NamedTuple):
    """The thing that a round measures once."""

    world_size: int
    loader: str
    variant: str


Round = dict[Key, Measurement]


def world_sizes(asked: Sequence[int] | None, num_gpus: int) -> list[int]:
    """Return the numbers of processes to measure, ascending; one process is always among them.

    Args:
        asked: by the user; None: one process and all GPUs.
        num_gpus: visible GPUs; 0 on the CPU, where two processes replace them.

    Raises:
        UserError: there is nothing to compare, or there are more processes than GPUs.

    >>> world_sizes(None, 8), world_sizes([4, 2], 8), world_sizes(None, 0)
    ([1, 8], [1, 2, 4], [1, 2])
    """
    sizes = sorted({1, *(asked or [num_gpus or 2])})
    if sizes[0] < 1 or sizes == [1]:
        given = f"got {','.join(map(str, asked))}" if asked else "and one GPU is visible"
        raise UserError(f"--processes: expected numbers above 1 to compare with one process, {given}")
    if num_gpus and sizes[-1] > num_gpus:
        raise UserError(
            f"--processes: {sizes[-1]} processes, but {num_gpus} GPUs are visible; choose {num_gpus} or fewer"
        )
    return sizes


def merged(name: str, rounds: Sequence[Measurement]) -> Timing:
    """Return the windows of all rounds."""
    step_s = tuple(seconds for measurement in rounds for seconds in measurement.step_s)
    return Timing(name, rounds[0].batch_size, step_s)


def speed_up(several: Sequence[Measurement], one: Sequence[Measurement]) -> Baseline:
    """Return the images/sec of several processes over those of one: in each round the ratio of medians."""

    def rates(rounds: Sequence[Measurement]) -> list[float]:
        return [measurement.batch_size / median(measurement.step_s) for measurement in rounds]

    ratios = [a / b for a, b in zip(rates(several), rates(one), strict=True)]
    images_per_sec = merged(ONE, one).images_per_sec.median
    return Baseline(variant=ONE, images_per_sec=images_per_sec, ratio=Spread.of(ratios))


def last_words(output: str) -> str:
    """Return the errors in a process group's output, or else its last lines, without torchrun's report."""
    lines = output.strip().splitlines()
    before = [line for line in takewhile(lambda line: _TORCHRUN not in line, lines) if line.strip()] or lines
    errors = dict.fromkeys(
        line for line in before if line.startswith("error: ")
    )  # several processes print the same
    return "\n".join(errors or before[-_LAST_LINES:])


def _launch(session: Session, world_size: int, threads: int) -> list[Measurement]:
    """Start a group of processes, wait for its end, and return its measurements.

    Raises:
        TrainingError: the group failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "measurements.json"
        command = _command(session, world_size, threads, output)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode or not output.exists():
            group = "one process" if world_size == 1 else f"{world_size} processes"
            raise TrainingError(
                f"measuring {group} failed with exit code {done.returncode}:\n{last_words(done.stdout)}"
            )
        return MEASUREMENTS.validate_json(output.read_bytes())


def _command(session: Session, world_size: int, threads: int, output: Path) -> list[str]:
    hardware = f"{'gpu' if session.on_gpu else 'cpu'}{1 if world_size == 1 else 2}"
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--quiet"),
        *("--config_file", str(_CONFIGS / f"{hardware}.yaml")),
        *("--num_processes", str(world_size)),
        *("--num_cpu_threads_per_process", str(threads)),
        *("-m", "benchmarks.scaling.scaling_worker"),
        *("--output", str(output)),
        *("--loaders", ",".join(session.options.loaders)),
        *("--windows", str(session.windows)),
        *("--steps", str(session.steps)),
        *(["--averaging", ",".join(averaging)] if (averaging := session.options.averaging) else []),
        *(["--quick"] if session.quick else []),
        *(str(Path(session.recipe).resolve()), *session.overrides),
    ]


def run(session: Session) -> None:
    options = session.options
    if session.processes.shard.world_size > 1:
        raise UserError("scaling starts its process groups itself; start it without accelerate launch")
    sizes = world_sizes(options.processes, torch.cuda.device_count() if session.on_gpu else 0)
    _check(session, sizes)
    # one process gets the same share of the CPU as it has beside the others
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(len(os.sched_getaffinity(0)) // sizes[-1], 1))
    num_rounds = options.rounds or (_QUICK_ROUNDS if session.quick else ROUNDS)
    rounds: list[Round] = []
    try:
        _measure_rounds(session, sizes, threads, num_rounds, rounds)
    except KeyboardInterrupt:  # the results of the complete rounds are kept
        if not rounds:
            raise
        session.stop(len(rounds), num_rounds)
    for loader in options.loaders:
        _record(session, rounds, num_rounds, loader)
    session.print_tables()
    _summarise(session)


def _measure_rounds(
    session: Session, sizes: Sequence[int], threads: int, num_rounds: int, rounds: list[Round]
) -> None:
    """Add the measurements of each round to the list, once the round is complete."""
    began = time.perf_counter()
    for number in range(1, num_rounds + 1):
        measured: Round = {}
        for size in sizes:
            done = (time.perf_counter() - began) / len(rounds) if rounds else None
            left = describe_left(None if done is None else done * (num_rounds - len(rounds)))
            session.show(f"{size} process{'es' if size > 1 else ''}, round {number} of {num_rounds}{left}")
            for measurement in _launch(session, size, threads):
                measured[Key(size, measurement.loader, measurement.variant)] = measurement
        rounds.append(measured)


def _check(session: Session, sizes: Sequence[int]) -> None:
    """Check loaders and batch sizes before anything is measured.

    Raises:
        UserError: a loader does not exist, or a batch does not divide by the processes, or exceeds the
            training images.
    """
    config = session.config()
    for name in session.options.loaders:
        session.config(f"data.loader={name}")
    images = len(session.splits(config).train.labels)
    for size in sizes:
        check_batches(config, size)
        if size * config.data.batch_size > images:
            raise UserError(
                f"data.batch_size: {config.data.batch_size} on each of {size} processes are more than the "
                f"{images} training images; use {images // size} or less"
            )


def _record(session: Session, rounds: Sequence[Round], planned: int, loader: str) -> None:
    """Keep a record of every variant on every number of processes."""
    one = [measured[Key(1, loader, ONE)] for measured in rounds]
    for key in rounds[0]:
        if key.loader == loader:
            measurements = [measured[key] for measured in rounds]
            batch_size = measurements[0].batch_size
            session.record(
                "scaling",
                key.variant,
                session.config(f"data.batch_size={batch_size}", f"data.loader={loader}"),
                merged(key.variant, measurements),
                None if key.world_size == 1 else speed_up(measurements, one),
                world_size=key.world_size,
                data_wait_fraction=median(measurement.data_wait_fraction for measurement in measurements),
                compile_s=median(measurement.compile_s for measurement in measurements),
                peak_memory_bytes=max(measurement.peak_memory_bytes for measurement in measurements),
                planned=planned if len(rounds) < planned else None,
            )


def _summarise(session: Session) -> None:
    """Print a sentence for each speed-up."""
    devices = "GPUs" if session.on_gpu else "processes"
    for record in session.records:
        if record.baseline is not None:
            ratio = record.baseline.ratio
            apart = record.variant == APART
            scaling, comma, averaging = record.variant.partition(",")
            kind = "apart, without communication," if apart else f"{scaling} scaling{comma}{averaging}"
            loader = f" with {record.loader}" if len(session.options.loaders) > 1 else ""
            figures = f"{ratio.median:.2f} × ({ratio.p10:.2f}–{ratio.p90:.2f})"
            session.say(f"{kind} on {record.world_size} {devices}{loader}: {figures}")
