"""Time the step alone, on one fixed batch, in many variants.

Model, precision, layout, compile mode and batch size are changed one at a time, or all combinations are
timed.
"""

import itertools

from benchmarks.arguments import AXES
from benchmarks.measure.ceiling import flops_per_image
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing
from benchmarks.measure.workloads import Rig, StepWorkload
from pipeline.config import Config
from pipeline.profiling.roofline import matmul_flops_per_s

_AT_ONCE = 6  # variants that are in memory together, and timed in turn


def choices(session: Session) -> list[tuple[str, list[str]]]:
    """Return key and values of each axis, the recipe's value first."""
    axes = []
    for name, (key, on_gpu, on_cpu) in AXES.items():
        original = _value_in_recipe(session, key)
        values = getattr(session.options, name)
        if values is None:
            values = (on_gpu if session.on_gpu else on_cpu) or [original]
            if session.quick:
                values = [original] if name == "batch_sizes" else values[:2]
        axes.append((key, list(dict.fromkeys(values if session.options.full else [original, *values]))))
    return axes


def _value_in_recipe(session: Session, key: str) -> str:
    section, name = key.split(".")
    value = getattr(getattr(session.config(), section), name)
    if key == "compile.mode" and value == "auto":
        return "reduce-overhead" if session.on_gpu else "none"
    return str(value).lower()


def variants(axes: list[tuple[str, list[str]]], full: bool) -> list[list[str]]:
    """Return the overrides of each variant.

    >>> variants([("a", ["1", "2"]), ("b", ["3", "4"])], full=False)
    [['a=1', 'b=3'], ['a=2', 'b=3'], ['a=1', 'b=4']]
    """
    if full:
        return [
            [f"{key}={value}" for (key, _), value in zip(axes, values, strict=True)]
            for values in itertools.product(*(v for _, v in axes))
        ]
    original = {key: values[0] for key, values in axes}
    changed = [original] + [{**original, key: value} for key, values in axes for value in values[1:]]
    return [[f"{key}={value}" for key, value in variant.items()] for variant in changed]


def run(session: Session) -> None:
    selected = variants(choices(session), session.options.full)
    original = selected[0]
    for overrides in selected:  # before any is measured
        _config(session, overrides)
    session.show("measuring the arithmetic of this machine")
    peak = matmul_flops_per_s(session.device) * session.processes.shard.world_size
    for first in range(0, len(selected), _AT_ONCE - 1):
        group = selected[first : first + _AT_ONCE - 1]
        _time(session, original, group, peak)
    session.print_tables()


def _time(session: Session, original: list[str], group: list[list[str]], peak: float) -> None:
    """Time a group and keep its records; the recipe is timed with every group, to be compared with."""
    timed = group if original in group else [original, *group]
    workloads = [_workload(session, overrides) for overrides in timed]
    timings = session.time(workloads)
    for overrides, timing, workload in zip(timed, timings, workloads, strict=True):
        if overrides in group:
            _record(session, timing, workload, None if timing is timings[0] else timings[0], peak)


def _config(session: Session, overrides: list[str]) -> Config:
    if "runtime.channels_last=false" in overrides:  # which our kernels do not support
        overrides = [*overrides, "model.fused_norm=false", "model.fused_stem=false"]
    return session.config("data.loader=synthetic", *overrides)


def _workload(session: Session, overrides: list[str]) -> StepWorkload:
    config = _config(session, overrides)
    name = ", ".join(item.partition("=")[2] for item in overrides)
    session.show(f"building {name}")
    rig = Rig(config, session.splits(config), session.processes)
    return StepWorkload(name, rig, rig.synthetic(), lead_in=1)


def _record(
    session: Session, timing: Timing, workload: StepWorkload, other: Timing | None, peak: float
) -> None:
    rig, splits = workload.rig, workload.rig.splits
    flops = flops_per_image(rig.config.model, splits.num_classes, splits.image_size)
    achieved = timing.images_per_sec.median * flops
    session.record(
        "step",
        "step",
        rig.config,
        timing,
        timing.against(other) if other else None,
        peak_memory_bytes=rig.peak_memory_bytes,
        compile_s=rig.compile_s,
        tflops=achieved / 1e12,
        peak_share=achieved / peak,
    )
