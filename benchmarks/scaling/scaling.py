"""Weak and strong scaling over the GPUs of this host: loader and step together on one process and on several.

data.batch_size is the batch of one process. Weak scaling gives each of N processes as much, strong scaling divides it among them; apart, N
processes train a network each, at the same time, and the slowest counts: what is missing there is not lost to communication. Every
measurement is a process group of its own, started by `accelerate launch`; they take turns (1, N, 1, N, …), and within one the variants
do. Speed-up is the images/sec of all N over those of the one process of the same round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import median

import torch

from benchmarks.measure.options import check_at_least, listed
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing
from benchmarks.publish.records import Baseline, Spread
from benchmarks.scaling.scaling_worker import APART, ONE, Figures
from pipeline.config import check_batches
from pipeline.errors import TrainingError, UserError

_CONFIGS = Path(__file__).parents[2] / "configs/accelerate"
_ROUNDS, _QUICK_ROUNDS = 3, 1
_LAST_LINES = 8
_TORCHRUN = "torch/distributed/elastic/multiprocessing"  # in the first line of its report of a failure

Rounds = list[
    dict[tuple[int, str], dict[str, Figures]]
]  # of each round, by world size and loader, then by variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=listed(int),
        metavar="N,N,…",
        help="default: 1 and all visible GPUs; on the CPU 1,2",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"process groups of each size, in turn (default: {_ROUNDS})"
    )
    parser.add_argument(
        "--loaders", type=listed(), default=["dali"], metavar="NAME,…", help="of data.loader (default: dali)"
    )


def world_sizes(asked: Sequence[int] | None, num_gpus: int) -> list[int]:
    """Numbers of processes to measure, ascending; one process is always among them.

    Args:
        asked: by the user; None: one process and all GPUs.
        num_gpus: visible ones; 0 on the CPU, where two processes stand for them.

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
            f"--processes: {sizes[-1]} processes, but the GPUs visible are {num_gpus}: choose that or fewer"
        )
    return sizes


def merged(name: str, rounds: Sequence[Figures]) -> Timing:
    """The windows of all rounds."""
    return Timing(
        name, rounds[0]["batch_size"], tuple(seconds for figures in rounds for seconds in figures["step_s"])
    )


def speed_up(ours: Sequence[Figures], one: Sequence[Figures]) -> Baseline:
    """Images/sec of several processes over those of one: of each round the ratio of the medians."""

    def rates(rounds: Sequence[Figures]) -> list[float]:
        return [figures["batch_size"] / median(figures["step_s"]) for figures in rounds]

    ratios = [several / single for several, single in zip(rates(ours), rates(one), strict=True)]
    return Baseline(
        variant=ONE, images_per_sec=merged(ONE, one).images_per_sec.median, ratio=Spread.of(ratios)
    )


def last_words(output: str) -> str:
    """The end of what a process group printed, without what torchrun says after it; of messages to a person, these alone."""
    lines = output.strip().splitlines()
    own = [line for line in takewhile(lambda line: _TORCHRUN not in line, lines) if line.strip()] or lines
    errors = dict.fromkeys(
        line for line in own if line.startswith("error: ")
    )  # of several processes the same one
    return "\n".join(errors or own[-_LAST_LINES:])


def _launch(session: Session, world_size: int, threads: int) -> list[Figures]:
    """Start a group of processes, wait for its end, and return what it measured.

    Raises:
        TrainingError: it failed; with the end of what it printed.
    """
    hardware = f"{'gpu' if session.on_gpu else 'cpu'}{1 if world_size == 1 else 2}"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [
            *(
                sys.executable,
                "-m",
                "accelerate.commands.launch",
                "--quiet",
                "--config_file",
                str(_CONFIGS / f"{hardware}.yaml"),
            ),
            *(
                "--num_processes",
                str(world_size),
                "--num_cpu_threads_per_process",
                str(threads),
                "-m",
                "benchmarks.scaling.scaling_worker",
            ),
            *("--output", str(output), "--loaders", ",".join(session.options.loaders)),
            *(
                "--windows",
                str(session.windows),
                "--steps",
                str(session.steps),
                *(["--quick"] if session.quick else []),
            ),
            *(str(Path(session.recipe).resolve()), *session.overrides),
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode or not output.exists():
            group = "one process" if world_size == 1 else f"{world_size} processes"
            raise TrainingError(
                f"measuring {group} failed with exit code {done.returncode}:\n{last_words(done.stdout)}"
            )
        return json.loads(output.read_text())


def run(session: Session) -> None:
    options = session.options
    if session.processes.shard.world_size > 1:
        raise UserError("scaling starts its process groups itself; start it without accelerate launch")
    check_at_least(1, options, "rounds")
    sizes = world_sizes(options.processes, torch.cuda.device_count() if session.on_gpu else 0)
    _check(session, sizes)
    # one process gets no more of the CPU than it has beside the others
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(len(os.sched_getaffinity(0)) // sizes[-1], 1))
    num_rounds = options.rounds or (_QUICK_ROUNDS if session.quick else _ROUNDS)
    rounds: Rounds = []
    for number in range(1, num_rounds + 1):
        found: dict[tuple[int, str], dict[str, Figures]] = {}
        for size in sizes:
            session.show(f"{size} process{'es' if size > 1 else ''}, round {number} of {num_rounds}")
            for figures in _launch(session, size, threads):
                found.setdefault((size, figures["loader"]), {})[figures["variant"]] = figures
        rounds.append(found)
    for loader in options.loaders:
        _record(session, rounds, sizes, loader)
    session.print_tables()
    _summarise(session)


def _check(session: Session, sizes: Sequence[int]) -> None:
    """
    Raises:
        UserError: a loader has no such name, or the batches do not divide by the processes, or are more than the training images.
    """
    own = session.config()
    for name in session.options.loaders:
        session.config(f"data.loader={name}")
    images = len(session.splits(own).train.labels)
    for size in sizes:
        check_batches(own, size)
        total = size * own.data.batch_size
        if total > images:
            raise UserError(
                f"data.batch_size: {own.data.batch_size} on each of {size} processes are more than the {images} training images; "
                f"use {images // size} or less"
            )


def _record(session: Session, rounds: Rounds, sizes: Sequence[int], loader: str) -> None:
    one = [found[1, loader][ONE] for found in rounds]
    for size in sizes:
        for variant in rounds[0][size, loader]:
            ours = [found[size, loader][variant] for found in rounds]
            session.record(
                "scaling",
                variant,
                session.config(f"data.batch_size={ours[0]['batch_size']}", f"data.loader={loader}"),
                merged(variant, ours),
                None if size == 1 else speed_up(ours, one),
                world_size=size,
                data_wait_fraction=median(figures["data_wait_fraction"] for figures in ours),
                compile_s=median(figures["compile_s"] for figures in ours),
                peak_memory_bytes=max(figures["peak_memory_bytes"] for figures in ours),
            )


def _summarise(session: Session) -> None:
    """A sentence for each speed-up."""
    where = "GPUs" if session.on_gpu else "processes"
    for record in session.records:
        if record.baseline is not None:
            ratio = record.baseline.ratio
            what = "apart, without communication," if record.variant == APART else f"{record.variant} scaling"
            by = f" with {record.loader}" if len(session.options.loaders) > 1 else ""
            session.say(
                f"{what} on {record.world_size} {where}{by}: {ratio.median:.2f} × ({ratio.p10:.2f}–{ratio.p90:.2f})"
            )
