"""Loaders alone, by batch size: ours, the DALI graph that one writes first, airbench's, and torch's DataLoader with workers."""

import argparse

import torch

from benchmarks.measure.cells import against
from benchmarks.measure.options import listed
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Stopwatch, Workload, steps_lasting
from benchmarks.measure.workloads import LoaderWorkload, batches_ahead, build_train_loader
from benchmarks.peers.naive_dali import NaiveDaliLoader
from benchmarks.peers.peers import AirbenchLoader, has_airbench
from pipeline.config import Config
from pipeline.data import ImageSet, Loader, Splits, Transform
from pipeline.data.sampling.batch_plan import TrainSampler
from pipeline.distributed.processes import Processes
from pipeline.errors import UserError

_WITH_WORKERS = "torchvision"
_LOADERS = ("dali", "dali-naive", "fused", "airbench", _WITH_WORKERS)
_NEED_GPU = ("fused", "airbench")
_BATCH_SIZES = (256, 512, 1024, 2048, 4096)
_STREAMED_BATCH_SIZES = (256, 512)
_WINDOW_S, _STREAMED_WINDOW_S = 0.4, 4.0
_IN_MEMORY = ("dali-naive", "fused", "airbench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-sizes",
        type=listed(int),
        metavar="N,N,…",
        help="default: 256 to 4096; 256,512 for streamed folders",
    )
    parser.add_argument(
        "--loaders",
        type=listed(str, _LOADERS),
        metavar="NAME,…",
        help=f"of {','.join(_LOADERS)} (default: all that run here)",
    )


def build_naive(config: Config, splits: Splits, processes: Processes) -> Loader:
    """The graph of `naive_dali` on the training set, with the same draws as all loaders."""
    data, augment, train = config.data, config.augment, splits.train
    dtype = torch.float32 if config.precision.mode == "fp32" else torch.float16
    transform = Transform(
        splits.mean, splits.std, dtype, config.runtime.channels_last, augment.crop_padding, augment.cutout
    )
    sampler = TrainSampler(
        len(train.labels), data.batch_size, processes.shard, config.seed, splits.image_size, augment
    )
    assert isinstance(train, ImageSet), "this loader is for images in memory"
    images, labels = torch.from_numpy(train.images.copy()), torch.from_numpy(train.labels)
    return NaiveDaliLoader(
        images, labels, sampler, transform, processes.device, data.num_threads, data.prefetch
    )


def _config(session: Session, name: str, batch_size: int) -> Config:
    backend = {"dali-naive": "dali", "airbench": "dali", _WITH_WORKERS: "reference"}.get(name, name)
    prefetch = (
        ["data.prefetch=1"] if name == _WITH_WORKERS else []
    )  # of each worker; more would only lengthen the lead-in
    return session.config(f"data.batch_size={batch_size}", f"data.loader={backend}", *prefetch)


def _workload(session: Session, name: str, batch_size: int) -> Workload:
    config = _config(session, name, batch_size)
    splits, augment = session.splits(config), config.augment
    if name == "airbench":
        return AirbenchLoader(splits, batch_size, augment.crop_padding, augment.cutout, session.device)
    build = build_naive if name == "dali-naive" else build_train_loader
    return LoaderWorkload(
        name,
        build(config, splits, session.processes),
        batch_size,
        1 if session.quick else batches_ahead(config),
    )


def _names(session: Session) -> list[str]:
    """Loaders that run on this machine; why others do not is said."""
    chosen = []
    streamed = session.streams(session.config())
    for name in session.options.loaders or _LOADERS:
        if streamed and name in _IN_MEMORY:
            session.say(
                f"{name}: left out, it is for images in memory, and these are streamed from their files"
            )
        elif name in _NEED_GPU and not session.on_gpu:
            session.say(f"{name}: left out, it needs a GPU")
        elif name == "airbench" and not has_airbench():
            session.say("airbench: left out, the package airbench 0.1.8 is not installed")
        elif name == "airbench" and session.splits(session.config()).image_size != (32, 32):
            session.say("airbench: left out, its loader wants images of 32x32 pixels")
        else:
            chosen.append(name)
    return chosen


def run(session: Session) -> None:
    names = _names(session)
    usual = _STREAMED_BATCH_SIZES if session.streams(session.config()) else _BATCH_SIZES
    limit = len(session.splits(session.config()).train.labels)
    wanted = session.options.batch_sizes or ([session.config().data.batch_size] if session.quick else usual)
    sizes = [size for size in wanted if size <= limit]
    if not sizes:
        raise UserError(f"--batch-sizes: all are more than the {limit} training images; choose smaller ones")
    for size in wanted:
        if size > limit:
            session.say(f"batch {size}: left out, it is more than the {limit} training images")
    for size in sizes:  # before any is measured
        session.config(f"data.batch_size={size}")
    for size in sizes:
        session.show(f"batch {size}")
        together = [name for name in names if name != _WITH_WORKERS]
        if together:
            _time(session, together, size)
    # workers fill their queues whenever they can, which must not be while another loader is timed; they are slow to start, too
    for size in sizes[::2] if _WITH_WORKERS in names else ():
        session.show(f"batch {size}, {_WITH_WORKERS}")
        _time(session, [_WITH_WORKERS], size)
    session.print_tables()


def _time(session: Session, names: list[str], batch_size: int) -> None:
    stopwatch = Stopwatch(session.device)
    workloads = [_workload(session, name, batch_size) for name in names]
    steps = [
        session.steps if session.quick else _steps(workload, stopwatch, session) for workload in workloads
    ]
    timings = session.time(workloads, steps)
    for name, timing in zip(names, timings, strict=True):
        other = "airbench" if name == "fused" and "airbench" in names else names[0]
        baseline = timing.against(timings[names.index(other)]) if name != other else None
        if baseline is not None:
            session.say(f"batch {batch_size}: {name} is {against(baseline)}")
        config = _config(session, name, batch_size)
        session.record("loader", name, config, timing, baseline, loader=name, model=None, compile_mode="none")


def _steps(workload: Workload, stopwatch: Stopwatch, session: Session) -> int:
    """As many as fit in the time; on a GPU whole epochs, which airbench's loader needs and which all that are timed with it get."""
    if session.streams(session.config()):
        return steps_lasting(workload, _STREAMED_WINDOW_S, stopwatch)
    in_epochs = session.on_gpu and workload.name != _WITH_WORKERS
    epoch = len(session.splits(session.config()).train.labels) // workload.images_per_step if in_epochs else 1
    return steps_lasting(workload, _WINDOW_S, stopwatch, epoch)
