"""Time loaders alone, by batch size: ours, on folders and shards, a naive DALI graph, airbench's, torch's."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.arguments import LOADERS, ON_SHARDS, WITH_WORKERS
from benchmarks.measure.cells import comparison
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Stopwatch, Workload, steps_lasting
from benchmarks.measure.workloads import LoaderWorkload, batches_ahead, build_train_loader
from benchmarks.peers.naive_dali import NaiveDaliLoader
from benchmarks.peers.peers import AirbenchLoader, has_airbench
from benchmarks.suites.make_shards import IMAGES_PER_SHARD, pack
from pipeline.config import Config, FolderData
from pipeline.data import ImageSet, Loader, Splits, Transform
from pipeline.data.files.shards.patterns import first_shard
from pipeline.data.sampling.batch_plan import TrainSampler
from pipeline.distributed.processes import Processes
from pipeline.errors import UserError

_NEED_GPU = ("fused", "airbench")
_IN_MEMORY = ("dali-naive", "fused", "airbench")
_BACKENDS = {
    ON_SHARDS: "dali",
    "dali-naive": "dali",
    "airbench": "dali",
    WITH_WORKERS: "reference",
}  # `data.loader` in their place
_BATCH_SIZES, _STREAMED_BATCH_SIZES = (256, 512, 1024, 2048, 4096), (256, 512)
_WINDOW_S, _STREAMED_WINDOW_S = 0.4, 4.0


def run(session: Session) -> None:
    if session.options.shards is not None:
        _pack_shards(session, session.options.shards)
    names = [name for name in session.options.loaders or LOADERS if _runs_here(session, name)]
    sizes = _batch_sizes(session)
    for size in sizes:  # before any is measured
        session.config(f"data.batch_size={size}")
    together = [name for name in names if name != WITH_WORKERS]
    for size in sizes if together else ():
        session.show(f"batch {size}")
        _time(session, together, size)
    # Apart from the others: workers fill their queues while another loader is timed. Every other size: they
    # start slowly.
    for size in sizes[::2] if WITH_WORKERS in names else ():
        session.show(f"batch {size}, {WITH_WORKERS}")
        _time(session, [WITH_WORKERS], size)
    session.print_tables()


def _pack_shards(session: Session, folder: Path) -> None:
    """Pack the class folders into shards, unless it was done before.

    Raises:
        UserError: the images are not in class folders, or other images are in the shards.
    """
    config = session.config()
    if not isinstance(config.data, FolderData) or not session.streams(config):
        raise UserError("--shards: needs streamed class folders; set data.dataset=folder and data.root")
    if first_shard(folder) is None:
        session.show(f"packing {folder}")
        pack(config.data, folder, IMAGES_PER_SHARD, config.data.num_threads)
    num_packed, num_images = (len(session.splits(c).train) for c in (_shards_config(session), config))
    if num_packed != num_images:
        raise UserError(
            f"--shards: {folder} holds {num_packed} training images, and data.root {num_images}; name an "
            "empty folder, or remove the shards"
        )


def _shards_config(session: Session, *overrides: str) -> Config:
    return session.config(
        "data.dataset=shards", f"data.root={session.options.shards}", "data.loader=dali", *overrides
    )


def _runs_here(session: Session, name: str) -> bool:
    """Return True if a loader runs on this machine; otherwise print the reason."""
    config = session.config()
    reason = ""
    if name == ON_SHARDS and session.options.shards is None:
        if session.options.loaders is None:
            return False
        reason = "it needs --shards DIR"
    elif name in _IN_MEMORY and session.streams(config):
        reason = "it is for images in memory, and these are streamed from their files"
    elif name in _NEED_GPU and not session.on_gpu:
        reason = "it needs a GPU"
    elif name == "airbench" and not has_airbench():
        reason = "the package airbench 0.1.8 is not installed"
    elif name == "airbench" and session.splits(config).image_size != (32, 32):
        reason = "its loader needs images of 32x32 pixels"
    if reason:
        session.say(f"{name}: left out, {reason}")
    return not reason


def _batch_sizes(session: Session) -> list[int]:
    """Return the batch sizes that are not larger than the training set.

    Raises:
        UserError: there are none.
    """
    config = session.config()
    default = _STREAMED_BATCH_SIZES if session.streams(config) else _BATCH_SIZES
    limit = _num_images(session)
    asked = session.options.batch_sizes or ([config.data.batch_size] if session.quick else default)
    sizes = [size for size in asked if size <= limit]
    if not sizes:
        raise UserError(f"--batch-sizes: all are more than the {limit} training images; choose smaller ones")
    for size in asked:
        if size > limit:
            session.say(f"batch {size}: left out, it is more than the {limit} training images")
    return sizes


def _num_images(session: Session) -> int:
    return len(session.splits(session.config()).train.labels)


def _time(session: Session, names: Sequence[str], batch_size: int) -> None:
    """Time loaders in turn and keep the records; compare `fused` with airbench, others with the first."""
    workloads = [_workload(session, name, batch_size) for name in names]
    steps = [_window_steps(session, workload) for workload in workloads]
    timings = dict(zip(names, session.time(workloads, steps), strict=True))
    for name, timing in timings.items():
        other = "airbench" if name == "fused" and "airbench" in names else names[0]
        baseline = timing.against(timings[other]) if name != other else None
        if baseline is not None:
            session.say(f"batch {batch_size}: {name} is {comparison(baseline)}")
        config = _config(session, name, batch_size)
        loader = "dali" if name == ON_SHARDS else name
        session.record(
            "loader", name, config, timing, baseline, loader=loader, model=None, compile_mode="none"
        )


def _window_steps(session: Session, workload: Workload) -> int:
    """Return the steps that fit in the time of a window.

    On a GPU they are whole epochs: airbench's loader needs these, and the loaders timed with it get the same.
    """
    if session.quick:
        return session.steps
    stopwatch = Stopwatch(session.device)
    if session.streams(session.config()):
        return steps_lasting(workload, _STREAMED_WINDOW_S, stopwatch)
    in_epochs = session.on_gpu and workload.name != WITH_WORKERS
    epoch = _num_images(session) // workload.images_per_step if in_epochs else 1
    return steps_lasting(workload, _WINDOW_S, stopwatch, epoch)


def _config(session: Session, name: str, batch_size: int) -> Config:
    if name == ON_SHARDS:
        return _shards_config(session, f"data.batch_size={batch_size}")
    backend = _BACKENDS.get(name, name)
    # of each worker; more would only lengthen the lead-in
    prefetch = ["data.prefetch=1"] if name == WITH_WORKERS else []
    return session.config(f"data.batch_size={batch_size}", f"data.loader={backend}", *prefetch)


def _workload(session: Session, name: str, batch_size: int) -> Workload:
    config = _config(session, name, batch_size)
    splits, augment = session.splits(config), config.augment
    if name == "airbench":
        return AirbenchLoader(splits, batch_size, augment.crop_padding, augment.cutout, session.device)
    build = build_naive if name == "dali-naive" else build_train_loader
    loader = build(config, splits, session.processes)
    return LoaderWorkload(name, loader, batch_size, 1 if session.quick else batches_ahead(config))


def build_naive(config: Config, splits: Splits, processes: Processes) -> Loader:
    """Return the loader of `naive_dali` on the training set, with the same draws as all loaders."""
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
