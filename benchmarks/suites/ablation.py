"""From the plain fp32, NCHW, eager recipe with torch's DataLoader to the full one: each switch alone, and one after the other.

The optimizer is fused from the start: the step knows no other. The order of the switches is that in which each meets the bottleneck
that it removes: the loader is changed when the step has outrun torch's DataLoader, and compiling follows when the host is what is left.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._inductor.utils import fresh_cache

from benchmarks.measure.options import check_at_least, listed, merge
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing
from benchmarks.measure.workloads import Rig, StepWorkload, build_train_loader
from benchmarks.sweep.plan import Plan, make_plan
from benchmarks.sweep.run import Sweep, run_sweep
from benchmarks.sweep.table import Mean, by_variant, values_of
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs",
        type=int,
        default=0,
        help="train every cumulative variant for so many epochs, for its accuracy (default: 0)",
    )
    parser.add_argument(
        "--seeds", type=listed(int), default=[0, 1, 2], metavar="N,N,…", help="of these runs (default: 0,1,2)"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="of these runs at a time (default: 1); their speed is not used"
    )


@dataclass(frozen=True)
class Variant:
    """A point on the way.

    Attributes:
        name: `plain`, `+ SWITCH` where it is added to those before, `plain + SWITCH` where it stands alone.
        before: name of the variant that this one adds a switch to.
    """

    name: str
    overrides: tuple[str, ...]
    before: str


def variants(on_gpu: bool) -> list[Variant]:
    """The plain recipe, the switches one after the other, and each alone (the first of them is in both series)."""
    switches = _ON_GPU if on_gpu else _ON_CPU
    made = [Variant("plain", _PLAIN, "plain")]
    for name, override in switches:
        made.append(Variant(f"+ {name}", tuple(merge(made[-1].overrides, [override])), made[-1].name))
    alone = [
        Variant(f"plain + {name}", tuple(merge(_PLAIN, [override])), "plain")
        for name, override in switches[1:]
        if name not in _NEVER_ALONE
    ]
    return made + alone


def run(session: Session) -> None:
    wanted = variants(session.on_gpu)
    if session.quick:
        wanted = [variant for variant in wanted if not variant.name.startswith("plain +")]
    plan = _plan_of_training(
        session, wanted
    )  # before anything is measured: what is wrong with it should not be found after that
    workloads = _build(session, wanted)
    steps = min(session.steps, _STEPS)
    timings = dict(
        zip([variant.name for variant in wanted], session.time(list(workloads.values()), steps), strict=True)
    )
    _record(session, wanted, workloads, timings, {})  # at once: what was measured is kept if training fails
    if plan is not None:
        session.records.clear()
        torch.cuda.empty_cache()
        _record(session, wanted, workloads, timings, _train(session, wanted, plan))
    session.print_tables()


def _record(
    session: Session,
    wanted: list[Variant],
    workloads: dict[str, StepWorkload],
    timings: dict[str, Timing],
    accuracies: dict[str, Mean],
) -> None:
    """A record of every variant; those with an accuracy supersede those without."""
    for variant in wanted:
        workload, timing = workloads[variant.name], timings[variant.name]
        epochs_to_pay = None
        if compiles(session.config(*variant.overrides)):
            eager = (
                wanted[[v.name for v in wanted].index("+ torch.compile") - 1].name
                if _is_cumulative(variant)
                else "plain"
            )
            num_images = workload.rig.splits.train.labels.size
            epochs_to_pay = epochs_until_paid(
                workload.rig.compile_s - workloads[eager].rig.compile_s, num_images, timings[eager], timing
            )
        accuracy = accuracies.get(variant.name)
        session.record(
            "ablation",
            variant.name,
            session.config(*variant.overrides),
            timing,
            timing.against(timings["plain"]) if variant.name != "plain" else None,
            peak_memory_bytes=workload.rig.peak_memory_bytes,
            compile_s=workload.rig.compile_s,
            data_wait_fraction=workload.data_wait_fraction,
            epochs_to_pay=epochs_to_pay,
            **(_accuracy_fields(accuracy, session.options.epochs) if accuracy else {}),
        )


def compiles(config: Config) -> bool:
    return config.compile.mode != "none"


def epochs_until_paid(compile_s: float, num_images: int, before: Timing, after: Timing) -> float | None:
    """Epochs after which compiling has saved the time that it took; None where it saves nothing."""
    saved = num_images / before.images_per_sec.median - num_images / after.images_per_sec.median
    return max(compile_s, 0.0) / saved if saved > 0 else None


def _build(session: Session, wanted: list[Variant]) -> dict[str, StepWorkload]:
    """Every variant, compiled without a cache; those that differ in the loader alone share model and step."""
    rigs: dict[str, Rig] = {}
    compiled_s: dict[str, float] = {}
    workloads = {}
    for variant in wanted:
        config = session.config(*variant.overrides)
        synthetic = session.config(*merge(variant.overrides, ["data.loader=synthetic"]))
        key = config_hash(synthetic)
        if key not in rigs:
            session.show(f"building {variant.name}")
            with fresh_cache():
                rigs[key] = Rig(synthetic, session.splits(config), session.processes)
            if compiles(
                config
            ):  # once for a network and process: the rig that captures it too finds it compiled, and alone would not
                network = config_hash(
                    session.config(
                        *merge(variant.overrides, ["data.loader=synthetic", "compile.mode=default"])
                    )
                )
                rigs[key].compile_s += compiled_s.get(network, 0.0)
                compiled_s.setdefault(network, rigs[key].compile_s)
        loader = build_train_loader(config, session.splits(config), session.processes)
        workloads[variant.name] = StepWorkload(variant.name, rigs[key], loader, session.lead_in(config))
    return workloads


def _run_names(wanted: list[Variant]) -> dict[str, Variant]:
    """The cumulative variants by the names of their runs."""
    numbered = [(number, variant) for number, variant in enumerate(wanted) if _is_cumulative(variant)]
    return {f"{number}-{variant.name.strip('+ ').replace(' ', '-')}": variant for number, variant in numbered}


def _plan_of_training(session: Session, wanted: list[Variant]) -> Plan | None:
    """The runs that give the cumulative variants their accuracy; None where none is asked for.

    Raises:
        UserError: an option, or the config of a run, is bad.
    """
    options = session.options
    check_at_least(0, options, "epochs")
    check_at_least(1, options, "jobs")
    if not options.epochs:
        return None
    place = [override for override in session.overrides if override.startswith("log.dir=")]
    own = [override for override in session.overrides if override not in place]
    overrides = merge(own, [f"duration={options.epochs}ep", "log.checkpoint_every=100%"])
    changes = {name: list(variant.overrides) for name, variant in _run_names(wanted).items()}
    return make_plan(
        f"ablation-{Path(session.recipe).stem}", session.recipe, changes, options.seeds, overrides, place
    )


def _train(session: Session, wanted: list[Variant], plan: Plan) -> dict[str, Mean]:
    """Test accuracy of the cumulative variants, by real runs."""
    names = _run_names(wanted)
    sweep = Sweep(plan, session.options.jobs)
    run_sweep(sweep, session.console)
    found = {
        names[name].name: Mean.of(values_of(group, "test_accuracy"))
        for name, group in by_variant(sweep.outcomes).items()
    }
    return {name: mean for name, mean in found.items() if mean is not None}


def _is_cumulative(variant: Variant) -> bool:
    return not variant.name.startswith("plain +")


def _accuracy_fields(accuracy: Mean, epochs: int) -> dict[str, Any]:
    return {
        "accuracy": accuracy.mean,
        "accuracy_std": accuracy.std,
        "accuracy_n": accuracy.n,
        "epochs": float(epochs),
    }
