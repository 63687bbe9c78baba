"""Time the switches between the plain recipe and the full one: each alone, and one after the other.

The plain recipe is fp32, NCHW, eager mode, and torch's DataLoader. The optimizer is fused from the start: the
step has no other. The switches stand in the order in which each meets the bottleneck that it removes: the
loader is changed when the step is faster than torch's DataLoader, and compiling follows when the host is the
bottleneck.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.measure.options import check_at_least, merge
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from benchmarks.sweep.plan import Plan, Question, make_plan
from benchmarks.sweep.run import Sweep, run_sweep
from benchmarks.sweep.table import Mean, by_variant
from pipeline.config import Config, config_hash

_STEPS = 30  # of a window, at most: the plain ones are slow
_PLAIN = (
    "runtime.cudnn_benchmark=false",
    "runtime.tf32=false",
    "runtime.channels_last=false",
    "precision.mode=fp32",
    "data.loader=reference",
    "compile.mode=none",
    "model.fused_norm=false",
    "model.fused_stem=false",
)
_ON_GPU = (
    ("cuDNN benchmark", "runtime.cudnn_benchmark=true"),
    ("TF32", "runtime.tf32=true"),
    ("channels-last", "runtime.channels_last=true"),
    ("fp16 and GradScaler", "precision.mode=fp16"),
    ("DALI loader", "data.loader=dali"),
    ("torch.compile", "compile.mode=default"),
    ("CUDA graph", "compile.mode=reduce-overhead"),
    ("fused batch norm", "model.fused_norm=true"),
    ("fused stem", "model.fused_stem=true"),
    ("fused loader", "data.loader=fused"),
)
_NEVER_ALONE = ("fused batch norm", "fused stem")  # they need channels-last
_ON_CPU = (
    ("channels-last", "runtime.channels_last=true"),
    ("bf16", "precision.mode=bf16"),
    ("DALI loader", "data.loader=dali"),
    ("torch.compile", "compile.mode=default"),
)


@dataclass(frozen=True)
class Variant:
    """The plain recipe with some of the switches set.

    Attributes:
        name: `plain`; `+ SWITCH` if a switch is added to those before; `plain + SWITCH` if it is set
            alone.
        before: name of the variant that this one adds a switch to.
    """

    name: str
    overrides: tuple[str, ...]
    before: str

    @property
    def is_cumulative(self) -> bool:
        return not self.name.startswith("plain +")


def variants(on_gpu: bool) -> list[Variant]:
    """Return the plain recipe, the switches one after the other, and each alone.

    The first switch is in both series, so it is not repeated.
    """
    switches = _ON_GPU if on_gpu else _ON_CPU
    cumulative = [Variant("plain", _PLAIN, "plain")]
    for name, override in switches:
        last = cumulative[-1]
        cumulative.append(Variant(f"+ {name}", tuple(merge(last.overrides, [override])), last.name))
    alone = [
        Variant(f"plain + {name}", tuple(merge(_PLAIN, [override])), "plain")
        for name, override in switches[1:]
        if name not in _NEVER_ALONE
    ]
    return cumulative + alone


def run(session: Session) -> None:
    selected = variants(session.on_gpu)
    if session.quick:
        selected = [variant for variant in selected if variant.is_cumulative]
    plan = _plan_of_training(session, selected)  # first: a bad config must show before anything is measured
    workloads = _build(session, selected)
    timings = session.time(list(workloads.values()), min(session.steps, _STEPS))
    measured = _Measured(workloads, dict(zip(workloads, timings, strict=True)))
    _record(session, selected, measured, {})  # at once: the speeds are kept if training fails
    if plan is not None:
        session.show("training for the accuracy")  # raises after Ctrl-C
        session.records.clear()
        torch.cuda.empty_cache()
        _record(session, selected, measured, _train(session, selected, plan))
    session.print_tables()


@dataclass(frozen=True)
class _Measured:
    """Workloads and timings by the names of their variants."""

    workloads: dict[str, StepWorkload]
    timings: dict[str, Timing]

    def epochs_to_pay(self, name: str, eager: str) -> float | None:
        """Return the epochs after which a variant has won back its longer compile time than `eager`."""
        rig = self.workloads[name].rig
        compile_s = rig.compile_s - self.workloads[eager].rig.compile_s
        num_images = rig.splits.train.labels.size
        return epochs_until_paid(compile_s, num_images, self.timings[eager], self.timings[name])


def _record(
    session: Session, selected: Sequence[Variant], measured: _Measured, accuracies: dict[str, Mean]
) -> None:
    """Keep a record of every variant; records with an accuracy supersede those without."""
    for variant in selected:
        config = session.config(*variant.overrides)
        workload, timing = measured.workloads[variant.name], measured.timings[variant.name]
        accuracy = accuracies.get(variant.name)
        session.record(
            "ablation",
            variant.name,
            config,
            timing,
            timing.against(measured.timings["plain"]) if variant.name != "plain" else None,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
            compile_s=workload.rig.compile_s,
            data_wait_fraction=workload.data_wait_fraction,
            epochs_to_pay=(
                measured.epochs_to_pay(variant.name, _eager_before(variant, selected))
                if compiles(config)
                else None
            ),
            accuracy=accuracy.mean if accuracy else None,
            accuracy_std=accuracy.std if accuracy else None,
            accuracy_n=accuracy.n if accuracy else None,
            epochs=float(session.options.epochs) if accuracy else None,
        )


def _eager_before(variant: Variant, selected: Sequence[Variant]) -> str:
    """Return the name of the last variant without compiling, the baseline of one that compiles."""
    if not variant.is_cumulative:
        return "plain"
    return next(other.before for other in selected if other.name == "+ torch.compile")


def compiles(config: Config) -> bool:
    return config.compile.mode not in ("none", "graph")


def epochs_until_paid(compile_s: float, num_images: int, before: Timing, after: Timing) -> float | None:
    """Return the epochs after which compiling has saved the time that it took; None if it saves none."""
    saved = num_images / before.images_per_sec.median - num_images / after.images_per_sec.median
    return max(compile_s, 0.0) / saved if saved > 0 else None


def _build(session: Session, selected: Sequence[Variant]) -> dict[str, StepWorkload]:
    """Build every variant, compiled without a cache; if only the loader differs, they share a step."""
    rigs: dict[str, Rig] = {}
    compile_s: dict[str, float] = {}  # of the first rig of each network
    workloads = {}
    for variant in selected:
        config = session.config(*variant.overrides)
        splits = session.splits(config)
        synthetic = session.config(*merge(variant.overrides, ["data.loader=synthetic"]))
        key = config_hash(synthetic)
        if key not in rigs:
            session.show(f"building {variant.name}")
            with fresh_cache():
                rigs[key] = Rig(synthetic, splits, session.processes)
            if compiles(config):
                # A network is compiled once a process: the rig that captures it too finds it compiled.
                # Alone it would not, so it gets the time of the first.
                same_network = merge(variant.overrides, ["data.loader=synthetic", "compile.mode=default"])
                network = config_hash(session.config(*same_network))
                rigs[key].compile_s += compile_s.get(network, 0.0)
                compile_s.setdefault(network, rigs[key].compile_s)
        loader = build_train_loader(config, splits, session.processes)
        workloads[variant.name] = StepWorkload(variant.name, rigs[key], loader, session.lead_in(config))
    return workloads


def _run_names(selected: Sequence[Variant]) -> dict[str, Variant]:
    """Return the cumulative variants by the names of their runs."""
    return {
        f"{number}-{variant.name.strip('+ ').replace(' ', '-')}": variant
        for number, variant in enumerate(selected)
        if variant.is_cumulative
    }


def _plan_of_training(session: Session, selected: Sequence[Variant]) -> Plan | None:
    """Return the runs that give the cumulative variants their accuracy; None if none is asked for.

    Raises:
        UserError: an option, or the config of a run, is bad.
    """
    options = session.options
    check_at_least(0, options, "epochs")
    if not options.epochs:
        return None
    session.check_images_have_a_name(session.config())
    place = [override for override in session.overrides if override.startswith("log.dir=")]
    common = [override for override in session.overrides if override not in place]
    return make_plan(
        Question(
            name=f"ablation-{Path(session.recipe).stem}",
            base=session.recipe,
            variants={name: list(variant.overrides) for name, variant in _run_names(selected).items()},
            seeds=options.seeds,
            common=merge(common, [f"duration={options.epochs}ep", "log.checkpoint_every=100%"]),
            extra=place,
        )
    )


def _train(session: Session, selected: Sequence[Variant], plan: Plan) -> dict[str, Mean]:
    """Train the cumulative variants, and return the test accuracies by variant."""
    names = _run_names(selected)
    sweep = Sweep(plan, session.options.jobs)
    run_sweep(sweep, session.console)
    accuracies = {names[group.name].name: group.scores.accuracy for group in by_variant(sweep.outcomes)}
    return {name: mean for name, mean in accuracies.items() if mean is not None}
