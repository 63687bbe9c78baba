"""On a GPU, a trainer starts again with another seed in the memory of its captured step."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure.whole_run import WholeRunRig
from pipeline.config import Config
from pipeline.data import load_splits
from pipeline.distributed.processes import connect
from pipeline.models import SpeedNet
from pipeline.training.build import set_backends
from pipeline.training.trainer import Trainer
from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import own_stream, small_config  # noqa: F401

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("process_state", "own_stream")]

METHODS = {
    "sgd": ("precision.mode=fp16",),
    "ended groups": (
        "precision.mode=fp16",
        "compile.drop_ended=true",
        "optimizer.groups=[{match: stem.*, until: 2st}, {match: '*bias', until: 9st}]",
    ),
    "muon, average": ("precision.mode=bf16", "optimizer.name=muon", "optimizer.lr=0.02", "ema.decay=0.9"),
}


def _config(seed: int, *keys: str) -> Config:
    captured = ("data.loader=fused", "duration=20st", "compile.mode=reduce-overhead", f"seed={seed}")
    return small_config(*captured, *keys)


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_a_seed_is_the_run_of_a_fresh_trainer(keys: tuple[str, ...]) -> None:
    """A fresh trainer takes its first steps before the capture, with the same kernels."""
    config = _config(0, *keys)
    set_backends(config)
    processes = connect(config)
    rig = WholeRunRig(config, load_splits(config.data, 0), processes)
    for seed in (0, 1):
        of_seed = _config(seed, *keys)
        timed = rig.train(of_seed)
        weights = {key: value.clone() for key, value in rig.trainer.state.model.state_dict().items()}
        fresh = Trainer.build(of_seed, load_splits(of_seed.data, seed), processes)
        assert timed.accuracies["one view"] == pytest.approx(fresh.fit().accuracy, abs=0.01)
        for key, value in fresh.state.model.named_parameters():
            torch.testing.assert_close(weights[key], value.detach(), rtol=1e-4, atol=1e-5)
    rig.check()


def test_the_kernels_of_a_step_and_of_the_evaluation_are_listed() -> None:
    """The replayed graph is seen as its kernels, and the next seed trains as if nothing had been profiled."""
    config = _config(0, *METHODS["ended groups"], "model.fused_norm=true")
    set_backends(config)
    rig = WholeRunRig(config, load_splits(config.data, 0), connect(config))
    before = rig.train(config).accuracies
    step, evaluation = rig.profile()
    for table, longest in ((step, "from step 9 on"), (evaluation, "the evaluation")):
        assert longest in table.work
        assert sum(row.fraction for row in table.rows) == pytest.approx(1)
        assert 0 < sum(row.microseconds for row in table.rows) < 3 * table.microseconds
    gradients = [row for row in step.rows if "_norm_gradient" in row.name]
    assert gradients and all(row.launches >= 1 for row in gradients)
    assert rig.train(config).accuracies["one view"] == pytest.approx(before["one view"], abs=0.01)
    rig.check()


@pytest.mark.parametrize("name", ["resnet20", "speednet94"])
def test_the_graphs_of_two_phases_train_as_one(name: str) -> None:
    """The second graph computes the same numbers, but for the gradients that no weight needs any longer."""
    layer = "stem.bias" if name == "speednet94" else "stem.0.weight"
    keys = (
        *(f"model.name={name}", "model.fused_norm=true", "model.fused_stem=true", "precision.mode=fp32"),
        *("runtime.tf32=false", f"optimizer.groups=[{{match: {layer}, until: 7st}}]"),
    )
    weights, ended, backwards = [], [], []
    for drop in ("false", "true"):
        config = _config(0, *keys, f"compile.drop_ended={drop}")
        set_backends(config)
        torch._dynamo.reset()
        trainer = Trainer.build(config, load_splits(config.data, 0), connect(config))
        trainer.fit()
        assert trainer.step.recompilations == 0 and trainer.step.settled
        weights.append(dict(trainer.state.model.named_parameters()))
        ended.append(len(trainer.step.phases))
        trainer.state.step = 19
        backwards.append(_count_kernels(trainer, "_whitening_stem_bias_gradient_kernel"))
    assert ended == [1, 2]
    assert backwards == ([1, 0] if name == "speednet94" else [0, 0])
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_behind_an_ended_stem_the_first_convolution_has_a_kernel() -> None:
    """Its gradient is rounded less, so the weights differ a little from those of one phase."""
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a GPU of compute capability 9")
    keys = (
        *("model.name=speednet94", "model.fused_norm=true", "model.fused_stem=true", "precision.mode=fp16"),
        "optimizer.groups=[{match: stem.bias, until: 7st}]",
    )
    weights, counts = [], []
    for drop in ("false", "true"):
        config = _config(0, *keys, f"compile.drop_ended={drop}")
        set_backends(config)
        torch._dynamo.reset()
        trainer = Trainer.build(config, load_splits(config.data, 0), connect(config))
        trainer.fit()
        assert trainer.step.recompilations == 0 and trainer.step.settled
        weights.append(dict(trainer.state.model.named_parameters()))
        trainer.state.step = 19
        counts.append(_count_kernels(trainer, "_pool_conv_weight_gradient_kernel"))
    assert counts == [0, 1]
    for key, value in weights[0].items():
        if value.ndim > 1:
            assert (weights[1][key] - value).norm() < 0.02 * value.norm(), key


def _count_kernels(trainer: Trainer, name: str) -> int:
    """Return how often a kernel runs in the next step."""
    batch = next(trainer.loaders.train.batches_from(0))
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        trainer.step(batch)
        torch.cuda.synchronize()
    return sum(event.count for event in profiled.key_averages() if name in event.key)


def test_whitening_is_computed_again_for_the_captured_step() -> None:
    """Its filters depend on the images, which depend on the seed here."""
    keys = ("model.name=speednet94", "precision.mode=bf16", "runtime.deterministic=false", "ema.decay=0.9")
    config = _config(0, *keys)
    set_backends(config)
    processes = connect(config)
    rig = WholeRunRig(config, load_splits(config.data, 0), processes)
    for seed in (0, 1):
        of_seed = _config(seed, *keys)
        rig.train(of_seed)
        state = rig.trainer.state
        fresh = Trainer.build(of_seed, load_splits(of_seed.data, seed), processes).state
        assert isinstance(state.model, SpeedNet) and isinstance(fresh.model, SpeedNet)
        torch.testing.assert_close(state.model.stem.weight, fresh.model.stem.weight)
        assert state.is_finite()
    rig.check()
