"""Weak and strong scaling over the GPUs of this host: loader and step together on one process and on several.

data.batch_size is the batch of one process. Weak scaling gives each of N processes that many images, strong
scaling divides them among the processes. Apart, N processes train a network each, at the same time, and the
slowest counts: the loss there is not due to communication. Every measurement is a new process group, started
by `accelerate launch`. The groups take turns (1, N, 1, N, …), and within a group the variants do. Speed-up is
the images/sec of all N processes over those of the one process of the same round.

If two and more processes are asked for, the weak scaling of more is predicted from one and two before it is
measured (`scaling_model.py`), also if this host has too few GPUs to measure it.

Exit code: 1 if `--target` is missed, 130 after Ctrl-C or SIGTERM, which keep the measurements so far.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.arguments import ROUNDS
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing, left_at_this_pace
from benchmarks.publish.records import Baseline, Predicted, Spread
from benchmarks.scaling import groups, prediction, verdicts
from benchmarks.scaling.scaling_model import Model
from benchmarks.scaling.scaling_worker import Measurement
from benchmarks.scaling.variants import ONE, WEAK
from pipeline.config import check_batches
from pipeline.errors import EXIT_FAILURE, EXIT_INTERRUPTED, TrainingError, UserError
from pipeline.process.cores import usable_cores
from pipeline.process.interrupt import keep_results

_QUICK_ROUNDS = 1


class Key(NamedTuple):
    """The thing that a round measures once."""

    world_size: int
    loader: str
    variant: str


Round = dict[Key, Measurement]


@dataclass
class _Progress:
    """The measurements so far.

    Attributes:
        sizes: numbers of processes, ascending.
        left_out: further ones, for which there are too few GPUs.
        planned: number of rounds that were asked for.
        rounds: the last one may be incomplete, but one process is the first of each.
        models: by loader; empty if nothing is predicted.
        has_tried: True if a prediction has been made, or has failed.
    """

    sizes: list[int]
    left_out: list[int]
    planned: int
    rounds: list[Round] = field(default_factory=list)
    models: dict[str, Model] = field(default_factory=dict)
    has_tried: bool = False

    def of(self, key: Key) -> list[Measurement]:
        return [measured[key] for measured in self.rounds if key in measured]

    def one_beside(self, key: Key) -> list[Measurement]:
        """Return the measurements of one process in the rounds that hold the key."""
        return [measured[Key(1, key.loader, ONE)] for measured in self.rounds if key in measured]

    @property
    def keys(self) -> list[Key]:
        return list(dict.fromkeys(key for measured in self.rounds for key in measured))

    @property
    def predicted(self) -> list[int]:
        """The numbers of processes to predict: those above two, if one and two are measured."""
        return [*self.sizes[2:], *self.left_out] if self.sizes[:2] == [1, 2] else []


def world_sizes(asked: Sequence[int] | None, num_gpus: int) -> tuple[list[int], list[int]]:
    """Return the numbers of processes to measure, and those that are left out for want of GPUs; ascending.

    One process is always among the first.

    Args:
        asked: by the user; None: one process and all GPUs.
        num_gpus: visible GPUs; 0 on the CPU, where two processes replace them.

    Raises:
        UserError: there is nothing to compare.

    >>> world_sizes(None, 8), world_sizes([4, 2, 8], 4), world_sizes(None, 0)
    (([1, 8], []), ([1, 2, 4], [8]), ([1, 2], []))
    """
    wanted = sorted({1, *(asked or [num_gpus or 2])})
    sizes = [size for size in wanted if not num_gpus or size <= num_gpus]
    if wanted[0] < 1 or sizes == [1]:
        given = f"got {','.join(map(str, asked))}, and" if asked else "and"
        gpus = (
            f"{given} {num_gpus} GPU{'s are' if num_gpus > 1 else ' is'} visible" if num_gpus else given[:-5]
        )
        raise UserError(f"--processes: expected numbers above 1 to compare with one process, {gpus}")
    return sizes, wanted[len(sizes) :]


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


def run(session: Session) -> int:
    """Measure.

    Returns:
        The exit code.

    Raises:
        TrainingError: a group failed; what was measured before it is shown and recorded.
    """
    options = session.options
    if session.processes.shard.world_size > 1:
        raise UserError("scaling starts its process groups itself; start it without accelerate launch")
    sizes, left_out = world_sizes(options.processes, torch.cuda.device_count() if session.on_gpu else 0)
    if left_out:
        gpus = torch.cuda.device_count()
        session.say(f"not measured: {', '.join(map(str, left_out))} processes; {gpus} GPUs are visible")
    cores = usable_cores()
    if not session.on_gpu and sizes[-1] > cores:
        session.say(
            f"{sizes[-1]} processes share {cores} CPU cores: this tests the benchmark, and is no speed-up"
        )
    target = verdicts.read_target(options.target)
    _check(session, sizes)
    progress = _Progress(sizes, left_out, options.rounds or (_QUICK_ROUNDS if session.quick else ROUNDS))
    failure = None
    try:
        _measure(session, progress)
    except KeyboardInterrupt:
        session.stop(f"stopped in round {len(progress.rounds)} of {progress.planned}")
    except TrainingError as error:
        failure = error
    for loader in options.loaders:
        _record(session, progress, loader)
    session.print_tables()
    reached = verdicts.say(session, target, progress.models)
    if failure is not None:
        raise failure
    if session.is_stopped:
        return EXIT_INTERRUPTED
    return 0 if reached else EXIT_FAILURE


def _measure(session: Session, progress: _Progress) -> None:
    """Add the measurements of each group, as soon as it has ended."""
    threads = groups.num_threads(progress.sizes[-1])
    began, done, total = time.perf_counter(), 0, progress.planned * len(progress.sizes)
    for number in range(1, progress.planned + 1):
        progress.rounds.append({})
        for size in progress.sizes:
            left = left_at_this_pace(began, done, total)
            plural = "es" if size > 1 else ""
            session.show(f"{size} process{plural}, round {number} of {progress.planned}{left}")
            for measurement in groups.measure(session, size, threads):
                progress.rounds[-1][Key(size, measurement.loader, measurement.variant)] = measurement
            keep_results()
            done += 1
            if size == 2 and progress.predicted and not progress.has_tried:
                _predict(session, progress, threads)


def _predict(session: Session, progress: _Progress, threads: int) -> None:
    """Predict from the first round, calibrate for it, and print the prediction; if that fails, warn."""
    session.show("2 processes: parts of a step, for the prediction")
    progress.has_tried = True
    first, batch = progress.rounds[0], session.config().data.batch_size
    try:
        calibrations = groups.calibrate(session, threads)
    except TrainingError as error:  # the measurements matter more
        session.say(f"warning: nothing is predicted: {error}")
        return
    for loader, calibration in calibrations.items():
        one, two = first[Key(1, loader, ONE)], first[Key(2, loader, WEAK)]
        model = Model(one.step_s, two.step_s, calibration)
        progress.models[loader] = model
        session.print(prediction.parts_table(model, loader, progress.predicted))
        for sentence in prediction.describe(model):
            session.say(sentence)
        for size in progress.predicted:
            session.say(prediction.sentence(model.predict(batch, size), batch, size, one.step_s))


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


def _record(session: Session, progress: _Progress, loader: str) -> None:
    """Keep a record of every variant on every number of processes."""
    for key in progress.keys:
        if key.loader != loader:
            continue
        measurements, model = progress.of(key), progress.models.get(loader)
        batch_size, size = measurements[0].batch_size, key.world_size
        predicted: Predicted | None = None
        if model is not None and key.variant == WEAK and size > 2:
            predicted = model.predict(batch_size // size, size)
        session.record(
            "scaling",
            key.variant,
            session.config(f"data.batch_size={batch_size}", f"data.loader={loader}"),
            merged(key.variant, measurements),
            None if size == 1 else speed_up(measurements, progress.one_beside(key)),
            world_size=size,
            data_wait_fraction=median(measurement.data_wait_fraction for measurement in measurements),
            compile_s=median(measurement.compile_s for measurement in measurements),
            peak_memory_bytes=max(measurement.peak_memory_bytes for measurement in measurements),
            planned=progress.planned if len(measurements) < progress.planned else None,
            predicted=predicted,
        )
