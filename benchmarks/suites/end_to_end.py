"""Time loader and step together, beside the step on synthetic images and beside a plain training loop."""

from dataclasses import dataclass

from benchmarks.arguments import END_TO_END_BATCH_SIZES
from benchmarks.measure.cells import comparison
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from benchmarks.peers.peers import PlainStep
from pipeline.config import Config

_STREAMED_BATCH_SIZES = (256, 512)
_PLAIN_BATCH_SIZE = 128
_PLAIN_CONFIG = (
    "data.loader=synthetic",
    "precision.mode=fp32",
    "model.fused_norm=false",
    "model.fused_stem=false",
    "runtime.channels_last=false",
    "runtime.tf32=true",
    "compile.mode=none",
    "loss.label_smoothing=0",
    "optimizer.name=sgd",
    "optimizer.lr=0.1",
    "optimizer.nesterov=false",
    "optimizer.weight_decay=5e-4",
)


@dataclass(frozen=True)
class Variant:
    """One loader at one batch size, timed with the step on synthetic images of the same batch size."""

    config: Config
    workload: StepWorkload
    synthetic: StepWorkload


def run(session: Session) -> None:
    variants = _variants(session)
    plain_steps, plain_config = _plain_steps(session)
    workloads = [*(variant.workload for variant in variants), *plain_steps]
    timings = dict(zip(workloads, session.time(workloads), strict=True))
    slowest = timings[plain_steps[0]] if plain_steps else None
    for variant in variants:
        timing = timings[variant.workload]
        _record(session, variant, timing, timings[variant.synthetic], slowest)
    for step in plain_steps:
        timing = timings[step]
        baseline = timing.against(slowest) if slowest and timing is not slowest else None
        session.record("peer", timing.name, plain_config, timing, baseline)
    session.print_tables()


def _variants(session: Session) -> list[Variant]:
    """Return every loader at every batch size, synthetic images first; those of one size share a step."""
    variants = []
    for size in _batch_sizes(session):
        base = session.config(f"data.batch_size={size}", "data.loader=synthetic")
        session.show(f"building the step at batch {size}")
        splits = session.splits(base)
        rig = Rig(base, splits, session.processes)
        synthetic: StepWorkload | None = None
        for name in ("synthetic", *_loaders(session)):
            config = session.config(f"data.batch_size={size}", f"data.loader={name}")
            loader = build_train_loader(config, splits, session.processes)
            workload = StepWorkload(name, rig, loader, session.lead_in(config))
            synthetic = synthetic or workload
            variants.append(Variant(config, workload, synthetic))
    return variants


def _batch_sizes(session: Session) -> list[int]:
    config = session.config()
    on_gpu = _STREAMED_BATCH_SIZES if session.streams(config) else END_TO_END_BATCH_SIZES
    default = on_gpu if session.on_gpu and not session.quick else (config.data.batch_size,)
    return session.options.batch_sizes or list(default)


def _loaders(session: Session) -> list[str]:
    if session.options.loaders:
        return session.options.loaders
    if session.streams(session.config()):
        return ["dali", "reference"]
    return ["dali", "fused"] if session.on_gpu else ["dali"]


def _record(
    session: Session, variant: Variant, timing: Timing, synthetic: Timing, slowest: Timing | None
) -> None:
    """Keep a record, compared with synthetic images; that of these is compared with the plain loop."""
    config, workload = variant.config, variant.workload
    other = synthetic if timing is not synthetic else slowest
    session.record(
        "end_to_end",
        config.data.loader,
        config,
        timing,
        timing.against(other) if other else None,
        peak_memory_bytes=workload.rig.peak_memory_bytes,
        compile_s=workload.rig.compile_s,
        data_wait_fraction=workload.data_wait_fraction,
    )
    if slowest is not None:
        name = f"{config.data.loader} at batch {config.data.batch_size}"
        session.say(f"{name} is {comparison(timing.against(slowest))}")


def _plain_steps(session: Session) -> tuple[list[PlainStep], Config]:
    """Return pytorch-cifar's step as it is, then without reading anything back; and their config.

    There are none for streamed images or several processes. On the CPU they have the recipe's model and
    batch.
    """
    if session.streams(session.config()):
        return [], session.config()
    original = (f"data.batch_size={_PLAIN_BATCH_SIZE}", "model.name=resnet18")
    config = session.config(*_PLAIN_CONFIG, *(original if session.on_gpu and not session.quick else ()))
    if session.processes.shard.world_size > 1:
        return [], config
    session.show("building the plain training loop")
    image_size = session.splits(config).image_size[0]
    steps = [
        PlainStep(variant, config.data.batch_size, readback, session.device, config.model, image_size)
        for variant, readback in (("pytorch-cifar", True), ("pytorch-cifar, nothing read back", False))
    ]
    return steps, config
