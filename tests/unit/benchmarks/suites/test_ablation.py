"""Tests the ablation: its switches, the time until compiling pays, and accuracy beside speed."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.measure.timing import Timing
from benchmarks.suites import ablation
from benchmarks.suites.ablation import epochs_until_paid, variants
from benchmarks.sweep.run import Sweep
from benchmarks.sweep.table import Outcome
from pipeline.config import load_config
from tests.python import ROOT
from tests.unit.benchmarks.results import make_result


@pytest.mark.parametrize("on_gpu", [True, False])
def test_one_switch_is_turned_at_a_time(on_gpu: bool):
    values = {
        variant.name: dict(item.split("=") for item in variant.overrides) for variant in variants(on_gpu)
    }
    for variant in variants(on_gpu)[1:]:
        changed = values[variant.name].items() ^ values[variant.before].items()
        assert len({key for key, _ in changed}) == 1, variant
    switches = [name for name in values if name.startswith("+ ")]
    assert {f"plain {name}" for name in switches[1:]} - values.keys() <= {
        "plain + fused batch norm",
        "plain + fused stem",
    }
    keys = [f"{key}={value}" for key, value in values[switches[-1]].items()]
    assert load_config(ROOT / "configs/cifar10_resnet18.yaml", keys).data.loader == (
        "fused" if on_gpu else "dali"
    )


@pytest.mark.parametrize(
    ("before_s", "after_s", "compile_s", "epochs"),
    [(0.2, 0.1, 30.0, 6.0), (0.2, 0.1, -1.0, 0.0), (0.1, 0.1, 30.0, None)],
)
def test_compiling_is_paid_for_by_what_it_saves(
    before_s: float, after_s: float, compile_s: float, epochs: float | None
):
    """5,000 images in steps of 100: 50 steps an epoch."""
    before, after = (
        Timing(name, 100, (step_s,)) for name, step_s in (("before", before_s), ("after", after_s))
    )
    assert epochs_until_paid(compile_s, 5000, before, after) == (
        pytest.approx(epochs) if epochs is not None else None
    )


def test_accuracies_are_means_over_seeds_of_the_cumulative_variants(monkeypatch: pytest.MonkeyPatch):
    trained: list[Sweep] = []

    def run_sweep(sweep: Sweep, _: object) -> None:
        """Every seed adds a tenth; one variant fails."""
        trained.append(sweep)
        runs = sweep.plan.runs
        failed = {
            run.name
            for run in runs
            if run.config.precision.mode == "bf16" and run.config.data.loader == "reference"
        }
        sweep.outcomes = [
            Outcome(run, "failed")
            if run.name in failed
            else Outcome(run, "done", Path(), make_result(test_accuracy=0.5 + run.seed / 10))
            for run in runs
        ]

    monkeypatch.setattr(ablation, "run_sweep", run_sweep)
    options = Namespace(epochs=2, seeds=[0, 1], jobs=1)
    overrides, checked = ["log.dir=elsewhere"], []
    session: Any = SimpleNamespace(
        options=options, overrides=overrides, recipe=str(ROOT / "configs/quickstart.yaml"), console=None
    )
    session.config, session.check_images_have_a_name = lambda: "its config", checked.append
    wanted = variants(on_gpu=False)
    plan = ablation._plan_of_training(session, wanted)
    assert plan is not None and plan.folder == Path("elsewhere/sweeps/ablation-quickstart")
    assert checked == ["its config"]
    accuracies = ablation._train(session, wanted, plan)
    assert {name: (mean.mean, mean.n) for name, mean in accuracies.items()} == dict.fromkeys(
        ["plain", "+ channels-last", "+ DALI loader", "+ torch.compile"], (pytest.approx(0.55), 2)
    )
    (sweep,) = trained
    assert {(run.config.duration, run.seed) for run in sweep.plan.runs} == {("2ep", 0), ("2ep", 1)} and len(
        sweep.plan.runs
    ) == 10
