"""Loader and step together, beside the same step on synthetic images and beside a plain training loop, in turn."""

import argparse

from benchmarks.measure.cells import against
from benchmarks.measure.options import listed
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Workload
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from benchmarks.peers.peers import PlainStep
from pipeline.config import Config

_BATCH_SIZES, _STREAMED_BATCH_SIZES = (512, 1024), (256, 512)
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
    "optimizer.sgd_lr_ratio=1.0",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ",".join(map(str, _BATCH_SIZES))
    parser.add_argument(
        "--batch-sizes", type=listed(int), metavar="N,N,…", help=f"default: {sizes}; on the CPU the recipe's"
    )
    parser.add_argument(
        "--loaders",
        type=listed(),
        metavar="NAME,…",
        help="of data.loader (default: dali, and on a GPU fused; for streamed folders dali and reference, which is torchvision's there)",
    )


def run(session: Session) -> None:
    options, own = session.options, session.config()
    streamed = session.streams(own)
    usual = _STREAMED_BATCH_SIZES if streamed else _BATCH_SIZES
    sizes = options.batch_sizes or (usual if session.on_gpu and not session.quick else [own.data.batch_size])
    default = ["dali", "reference"] if streamed else ["dali", "fused"] if session.on_gpu else ["dali"]
    loaders = ["synthetic", *(options.loaders or default)]
    workloads: list[Workload] = []
    configs: list[Config] = []
    for size in sizes:
        base = session.config(f"data.batch_size={size}", "data.loader=synthetic")
        session.show(f"building the step at batch {size}")
        splits = session.splits(base)
        rig = Rig(base, splits, session.processes)
        for name in loaders:
            config = session.config(f"data.batch_size={size}", f"data.loader={name}")
            loader = build_train_loader(config, splits, session.processes)
            workloads.append(StepWorkload(name, rig, loader, session.lead_in(config)))
            configs.append(config)
    plain_workloads, plain = ([], own) if streamed else _plain(session)
    timings = session.time([*workloads, *plain_workloads])
    slowest = timings[len(workloads)] if plain_workloads else None
    for index, (workload, config, timing) in enumerate(zip(workloads, configs, timings, strict=False)):
        assert isinstance(workload, StepWorkload)
        synthetic = timings[index - index % len(loaders)]
        baseline = (
            timing.against(synthetic)
            if timing is not synthetic
            else timing.against(slowest)
            if slowest
            else None
        )
        session.record(
            "end_to_end",
            config.data.loader,
            config,
            timing,
            baseline,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
            compile_s=workload.rig.compile_s,
            data_wait_fraction=workload.data_wait_fraction,
        )
        if slowest is not None:
            session.say(
                f"{config.data.loader} at batch {config.data.batch_size} is {against(timing.against(slowest))}"
            )
    for timing in timings[len(workloads) :]:
        session.record(
            "peer",
            timing.name,
            plain,
            timing,
            None if timing is slowest else timing.against(timings[len(workloads)]),
        )
    session.print_tables()


def _plain(session: Session) -> tuple[list[PlainStep], Config]:
    """pytorch-cifar's step as it is, and without reading anything back; one process only. On the CPU with the recipe's model and batch."""
    theirs = (
        (f"data.batch_size={_PLAIN_BATCH_SIZE}", "model.name=resnet18")
        if session.on_gpu and not session.quick
        else ()
    )
    config = session.config(*_PLAIN_CONFIG, *theirs)
    if session.processes.shard.world_size > 1:
        return [], config
    session.show("building the plain training loop")
    image_size = session.splits(config).image_size[0]
    steps = [
        PlainStep(variant, config.data.batch_size, readback, session.device, config.model, image_size)
        for variant, readback in (("pytorch-cifar", True), ("pytorch-cifar, nothing read back", False))
    ]
    return steps, config
