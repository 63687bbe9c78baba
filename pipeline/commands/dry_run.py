"""Describes the run that a config would start: `python -m pipeline.train CONFIG --dry-run`.

Uses no GPU, downloads nothing, writes nothing. The plan appears line by line; only the last lines need torch,
whose import takes seconds.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.config import (
    SLOW_ON_CPU,
    Config,
    ScaledPrecision,
    check_batches,
    check_capture,
    check_class_weights,
    micro_batch_size,
    path_of,
)
from pipeline.config.model import library_of
from pipeline.data.datasets.counts import Counts, count_images
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from pipeline.data.sampling.progressive import training_resolutions
from pipeline.errors import UserError
from pipeline.process.cache_dirs import cache_folder
from pipeline.process.cores import usable_cores
from pipeline.process.fast_import import imports_uncollected
from pipeline.process.world import read_world
from pipeline.run.environment import output_of
from pipeline.run.folder import RunFolder
from pipeline.run.resume import find_resumable
from pipeline.training.plan import Plan

_MIB = 2**20


def describe_plan(config: Config, recipe: str) -> Iterator[str]:
    """Yield the plan of a run, one line for each part of it. Everything is checked before the first line.

    Args:
        config: of the run.
        recipe: names the run, unless `log.name` does.

    Raises:
        UserError: for a reason that would end the run before its first step, as far as that is known.
    """
    machine = _find_machine(config)
    check_batches(config, machine.processes)
    _check_loader(config, machine)
    check_capture(config.compile, machine.device)
    counts = count_images(config.data, config.seed)
    check_class_weights(config.loss.class_weights, counts.num_classes)
    plan = _plan(config, machine, counts)
    resumed = find_resumable(config).run
    offline = _check_network(config, machine, counts, fresh=resumed is None)
    warnings = "\n".join(f"warning: {warning}" for warning in config.warnings)
    rows = {
        **({"config": warnings} if warnings else {}),
        "data": _data(config, counts),
        **({} if offline or resumed else {"weights": f"{config.model.weights}, downloaded at the start"}),
        **({"trained": _trained(config, counts)} if config.model.freeze else {}),
        "steps": _steps(config, plan),
        "learning rate": _rates(plan),
        "processes": f"{machine.processes}, on {machine.name}",
        "loader": _loader(config, machine),
        "precision": _precision(config, machine),
        "compile": _compile(config, machine),
        "evaluation": f"every {_interval(plan.eval_every)}; logged every {_interval(plan.log_every)}",
        "checkpoints": f"every {_interval(plan.checkpoint_every)}; the newest two and the best are kept",
        "run folder": _run_folder(config, recipe, resumed),
        "cache folder": str(cache_folder()),
    }
    width = max(map(len, rows)) + 2
    for name, text in rows.items():
        yield _line(name, text, width)
    yield _line("memory", _memory(config, machine, counts), width)
    yield "dry run: nothing was trained, downloaded or written"


def _line(name: str, text: str, width: int) -> str:
    return name.ljust(width) + text.replace("\n", "\n" + " " * width)


def _check_network(config: Config, machine: "_Machine", counts: Counts, *, fresh: bool) -> bool:
    """Refuse a network, weights, batches or patterns of parameters that a run would refuse.

    Our own networks are checked with the config. Others are built, which needs torch.

    Returns:
        False if the run downloads `model.weights`.
    """
    reads_weights = fresh and config.model.weights is not None
    of_library = library_of(config.model.name) is not None
    patterns = bool(config.model.freeze or config.optimizer.groups)
    if not (reads_weights or of_library or patterns or micro_batch_size(config, machine.processes) == 1):
        return True
    with imports_uncollected():
        import torch

        from pipeline.models.library_weights import can_be_read_offline
        from pipeline.models.norm_batches import check_norm_batches
        from pipeline.optim.parts import partition
        from pipeline.training.build import build_initial_model

    check_norm_batches(config, machine.processes)
    offline = can_be_read_offline(config.model, config.image_size)
    if fresh:  # the file of model.weights may not fit, nor the patterns
        network = build_initial_model(config, counts.num_classes, torch.device("cpu"), pretrained=offline)
        partition(config.optimizer, network)
    return offline


@dataclass(frozen=True)
class _Machine:
    """Describes the hardware of the run.

    Attributes:
        device: type of the device, `cuda` or `cpu`.
        name: of the device, for people.
        memory: of one device, in bytes; None if it is not known.
        processes: that would share the batch.
    """

    device: str
    name: str
    memory: int | None
    processes: int

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


def _find_machine(config: Config) -> _Machine:
    """Ask nvidia-smi for the GPUs, which opens none."""
    world = read_world()
    processes = int(os.environ.get("QUICKRES_NUM_PROCESSES") or world.size)
    gpus = _visible_gpus() if config.runtime.device != "cpu" else []
    num_gpus = len(gpus)
    if config.runtime.device == "cpu" or (config.runtime.device == "auto" and not num_gpus):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        name = f"the CPU ({usable_cores()} cores)"
        return _Machine("cpu", name, memory, processes)
    if not num_gpus:
        return _Machine("cuda", "a GPU, of which this machine has none", None, processes)
    if processes > num_gpus and world.size == 1:
        raise UserError(
            f"more processes than the {num_gpus} visible GPUs; start at most one per GPU (NUM_PROCESSES)"
        )
    name, _, mib = gpus[0].partition(", ")
    memory = int(mib) * _MIB if mib.isdigit() else None
    return _Machine("cuda", f"{name or 'GPU'}, {num_gpus} visible", memory, processes)


def _visible_gpus() -> list[str]:
    """Return name and MiB of each GPU that a CUDA program sees; it ignores `CUDA_VISIBLE_DEVICES` from the
    first invalid entry on."""
    output = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    gpus = (output or "").splitlines()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not gpus:
        return gpus
    visible = []
    for entry in chosen.split(","):
        index = int(entry) if entry.isascii() and entry.isdecimal() else 0  # a UUID tells no index
        if index >= len(gpus) or not (entry.isdecimal() or entry.startswith(("GPU-", "MIG-"))):
            break
        visible.append(gpus[index])
    return visible


def _check_loader(config: Config, machine: _Machine) -> None:
    if config.data.loader == "fused" and not machine.on_gpu:
        raise UserError(
            "data.loader: fused runs on a GPU only; use data.loader=dali, which has a CPU backend"
        )


def _plan(config: Config, machine: _Machine, counts: Counts) -> Plan:
    """Return the plan that training would make; its sampler counts the steps of an epoch without data."""
    shard, size = Shard(0, machine.processes), (config.image_size, config.image_size)
    sampler = TrainSampler(counts.train, config.data.batch_size, shard, config.seed, size, config.augment)
    plan = Plan.of(config, sampler.steps_per_epoch)
    training_resolutions(config, plan.steps_per_epoch)  # refuses sizes out of order, or after the end
    return plan


def _data(config: Config, counts: Counts) -> str:
    held_out = f", {counts.held_out:,} held out" if counts.held_out else ""
    return (
        f"{config.data.dataset}: {counts.train:,} training images{held_out}, {counts.test:,} test images, "
        f"{counts.num_classes:,} classes ({counts.note})"
    )


def _trained(config: Config, counts: Counts) -> str:
    with imports_uncollected():
        from pipeline.models.freeze import describe_trained
        from pipeline.profiling.memory_estimate import build_frozen

    return f"{describe_trained(build_frozen(config, counts.num_classes))}; model.freeze excludes the others"


def _interval(steps: int) -> str:
    return "step" if steps == 1 else f"{steps:,} steps"


def _steps(config: Config, plan: Plan) -> str:
    epochs = plan.total_steps / plan.steps_per_epoch
    each = f"{config.data.batch_size:,} images, {plan.steps_per_epoch:,} an epoch"
    return f"{plan.total_steps:,} of {each}: {epochs:g} epoch{'s' * (epochs != 1)}"


def _rates(plan: Plan) -> str:
    percents = (0, 25, 50, 75, 100)
    rates = (f"{percent} % {plan.lr_at(plan.total_steps * percent // 100):.4g}" for percent in percents)
    return "\n".join([", ".join(rates), *(f"warning: {warning}" for warning in plan.warnings)])


def _memory(config: Config, machine: _Machine, counts: Counts) -> str:
    with imports_uncollected():
        from pipeline.profiling.memory_estimate import estimate_memory, what_fits

    on_device = config.data.loader in ("dali", "fused") and not config.probably_streamed
    num_images = counts.train + counts.test if on_device else 0
    memory = estimate_memory(config, machine.processes, counts.num_classes, num_images)
    text = (
        f"about {memory.total / _MIB:,.0f} MiB a process by estimate: {memory.weights / _MIB:,.0f} weights "
        f"and optimizer, {memory.activations / _MIB:,.0f} activations, {memory.images / _MIB:,.0f} data set"
    )
    if machine.memory is None:
        return text
    text += f"; the machine has {machine.memory / _MIB:,.0f}"
    if memory.total <= machine.memory:
        return text
    remedy = what_fits(config, machine.processes, memory, machine.memory)
    return f"{text}\nwarning: the memory is too small; {remedy}"


def _loader(config: Config, machine: _Machine) -> str:
    data = config.data
    backend = f" ({'GPU' if machine.on_gpu else 'CPU'} backend)" if data.loader == "dali" else ""
    threads = f"{data.num_threads} thread{'s' * (data.num_threads > 1)}"
    return f"{data.loader}{backend}, {threads}, {data.prefetch} batches ahead"


def _precision(config: Config, machine: _Machine) -> str:
    precision = config.precision
    if not isinstance(precision, ScaledPrecision):
        return precision.mode
    text = (
        f"fp16, loss scale from {precision.init_scale:g}; ends after {precision.max_consecutive_skips} "
        "skipped updates in a row"
    )
    return text if machine.on_gpu else f"{text}\nwarning: {SLOW_ON_CPU}"


def _compile(config: Config, machine: _Machine) -> str:
    mode = config.compile.mode_on(machine.device)
    captured = ", the step captured in a CUDA graph" if config.compile.captures_on(machine.device) else ""
    return (
        f"{mode} by {config.compile.backend}{captured}"
        if config.compile.compiles_on(machine.device)
        else (f"{mode}{captured}")
    )


def _run_folder(config: Config, recipe: str, resumed: RunFolder | None) -> str:
    if resumed is None:
        return f"{path_of('log.dir', config.log.dir) / (config.log.name or recipe)}-TIME"
    return (
        f"{resumed.path}, continued from {resumed.resume_from.name if resumed.resume_from else 'its start'}"
    )
