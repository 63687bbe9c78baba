"""What a run would do: `python -m pipeline.train CONFIG --dry-run`. Takes no GPU, downloads nothing, writes nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Config, check_batches
from pipeline.data.datasets.counts import Counts, count_images
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from pipeline.data.sampling.progressive import training_resolutions
from pipeline.errors import UserError
from pipeline.process.cache_dirs import cache_folder
from pipeline.profiling.memory_estimate import MemoryEstimate, estimate_memory, what_fits
from pipeline.run.environment import output_of
from pipeline.run.resume import find_resumable
from pipeline.training.build import build_initial_model, compile_mode
from pipeline.training.plan import Plan
from pipeline.training.precision import SLOW_ON_CPU

_MIB = 2**20


@dataclass(frozen=True)
class _Machine:
    """Where the run would be.

    Attributes:
        device: `cuda` or `cpu`.
        name: of the device, for people.
        memory: of one device, in bytes; None: not known.
        processes: that would share the batch.
    """

    device: torch.device
    name: str
    memory: int | None
    processes: int


def describe_plan(config: Config, recipe: str) -> str:
    """The plan of a run, a line for each part of it.

    Args:
        config: of the run.
        recipe: names the run, unless `log.name` does.

    Raises:
        UserError: what would end the run before its first step, as far as that can be known.
    """
    machine = _find_machine(config)
    check_batches(config, machine.processes)
    if config.data.loader == "fused" and machine.device.type != "cuda":
        raise UserError(
            "data.loader: fused runs on a GPU only; use data.loader=dali, which has a CPU backend"
        )
    counts = count_images(config.data, config.seed)
    shard, size = Shard(0, machine.processes), (config.image_size, config.image_size)
    sampler = TrainSampler(counts.train, config.data.batch_size, shard, config.seed, size, config.augment)
    plan = Plan.of(config, sampler.steps_per_epoch)
    training_resolutions(config, plan.steps_per_epoch)  # which may be out of order, or after the end
    resumed, _ = find_resumable(config)
    if resumed is None:
        build_initial_model(
            config, counts.num_classes, torch.device("cpu")
        )  # the file that model.weights names may not fit
    on_device = config.data.loader in ("dali", "fused") and not config.probably_streamed
    memory = estimate_memory(
        config, machine.processes, counts.num_classes, counts.train + counts.test if on_device else 0
    )
    rows = {
        "data": _data(config, counts),
        "steps": _steps(config, plan),
        "learning rate": _rates(plan),
        "processes": f"{machine.processes}, on {machine.name}",
        "memory": _memory(config, machine, memory),
        "loader": _loader(config, machine),
        "precision": _precision(config, machine),
        "compile": _compile(config, machine),
        "evaluation": f"every {_steps_of(plan.eval_every)}; logged every {_steps_of(plan.log_every)}",
        "checkpoints": f"every {_steps_of(plan.checkpoint_every)}; the newest two and the best are kept",
        "run folder": f"{Path(config.log.dir) / (config.log.name or recipe)}-TIME"
        if resumed is None
        else f"{resumed.path}, continued from {resumed.resume_from.name if resumed.resume_from else 'its start'}",
        "cache folder": str(cache_folder()),
    }
    width = max(map(len, rows)) + 2
    lines = [name.ljust(width) + text.replace("\n", "\n" + " " * width) for name, text in rows.items()]
    return "\n".join([*lines, "dry run: nothing was trained, downloaded or written"])


def _find_machine(config: Config) -> _Machine:
    """By torch's count of the GPUs, which asks the driver and opens none of them, and nvidia-smi."""
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("QUICKRES_NUM_PROCESSES") or 1)
    there = torch.cuda.device_count()
    if config.runtime.device == "cpu" or (config.runtime.device == "auto" and not there):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return _Machine(
            torch.device("cpu"), f"the CPU ({len(os.sched_getaffinity(0))} cores)", memory, processes
        )
    if not there:
        return _Machine(torch.device("cuda"), "a GPU, of which this machine has none", None, processes)
    if processes > there and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"more processes than the {there} visible GPUs; start at most one per GPU (NUM_PROCESSES)"
        )
    told = output_of("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    name, _, mib = (told or "").partition("\n")[0].partition(", ")
    return _Machine(
        torch.device("cuda"),
        f"{name or 'GPU'}, {there} visible",
        int(mib) * _MIB if mib.isdigit() else None,
        processes,
    )


def _data(config: Config, counts: Counts) -> str:
    held_out = f", {counts.held_out:,} held out" if counts.held_out else ""
    return (
        f"{config.data.dataset}: {counts.train:,} training images{held_out}, {counts.test:,} test images, {counts.num_classes:,} classes "
        f"({counts.note})"
    )


def _steps_of(count: int) -> str:
    return "step" if count == 1 else f"{count:,} steps"


def _steps(config: Config, plan: Plan) -> str:
    epochs = plan.total_steps / plan.steps_per_epoch
    each = f"{config.data.batch_size:,} images, {plan.steps_per_epoch:,} an epoch"
    return f"{plan.total_steps:,} of {each}: {epochs:g} epoch{'s' * (epochs != 1)}"


def _rates(plan: Plan) -> str:
    shares = (0, 25, 50, 75, 100)
    rates = ", ".join(f"{share} % {plan.lr_at(plan.total_steps * share // 100):.4g}" for share in shares)
    return "\n".join([rates, *(f"warning: {warning}" for warning in plan.warnings)])


def _memory(config: Config, machine: _Machine, memory: MemoryEstimate) -> str:
    text = (
        f"about {memory.total / _MIB:,.0f} MiB a process by estimate: {memory.weights / _MIB:,.0f} weights and optimizer, "
        f"{memory.activations / _MIB:,.0f} activations, {memory.images / _MIB:,.0f} data set"
    )
    if machine.memory is None:
        return text
    text += f"; the machine has {machine.memory / _MIB:,.0f}"
    if memory.total <= machine.memory:
        return text
    return (
        f"{text}\nwarning: that is too much; {what_fits(config, machine.processes, memory, machine.memory)}"
    )


def _loader(config: Config, machine: _Machine) -> str:
    data = config.data
    backend = (
        f" ({'GPU' if machine.device.type == 'cuda' else 'CPU'} backend)" if data.loader == "dali" else ""
    )
    return f"{data.loader}{backend}, {data.num_threads} thread{'s' * (data.num_threads > 1)}, {data.prefetch} batches ahead"


def _precision(config: Config, machine: _Machine) -> str:
    precision = config.precision
    if precision.mode != "fp16":
        return precision.mode
    text = f"fp16, loss scale from {precision.init_scale:g}; ends after {precision.max_consecutive_skips} skipped updates in a row"
    return text if machine.device.type == "cuda" else f"{text}\nwarning: {SLOW_ON_CPU}"


def _compile(config: Config, machine: _Machine) -> str:
    mode = compile_mode(config.compile, machine.device)
    captured = ", the step captured in a CUDA graph" if mode in ("reduce-overhead", "max-autotune") else ""
    return mode if mode == "none" else f"{mode} by {config.compile.backend}{captured}"
