"""Tests that each seed of one process is the run of a process of its own, bit for bit."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure import whole_run
from benchmarks.measure.whole_run import WholeRunRig, random_splits
from pipeline.data import ImageSet, Splits
from pipeline.distributed.processes import connect
from pipeline.errors import TrainingError
from pipeline.models import SpeedNet
from pipeline.profiling.kernel_shares import KernelShare
from pipeline.run.checkpoint import map_tensors
from pipeline.training.build import build_initial_model, fit_to_images
from pipeline.training.evaluator import Evaluator
from pipeline.training.state import TrainState
from pipeline.training.trainer import Trainer
from tests.tiny import assert_equal, in_precision, tiny_config, tiny_splits, tiny_trainer

pytestmark = pytest.mark.usefixtures("process_state")

METHODS = {
    "sgd": (),
    "views and average": ("evaluation.flip_tta=true", "ema.decay=0.9"),
    "views of some images": ("evaluation.views=mirror_shift", "evaluation.views_share=0.25", "ema.decay=0.9"),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.01", "ema.decay=0.5"),
    "muon": ("optimizer.name=muon", "optimizer.sgd_lr_ratio=2.0", "optimizer.renormalise_every=2st"),
    "groups": (
        "optimizer.groups=[{match: '*bias', lr_ratio: 4.0, until: 2ep}, {match: 'h*', weight_decay: 0.0}]",
    ),
    "ended groups": (
        "compile.drop_ended=true",
        "optimizer.groups=[{match: stem.*, until: 2st}, {match: '*bias', until: 2ep}]",
    ),
    "lookahead": ("lookahead.every=2st", "ema.decay=0.9"),
    "loss scale": in_precision("fp16", "precision.init_scale=64.0", "precision.growth_interval=4"),
    "mixing": ("augment.mix=cutmix", "data.loader=reference"),
    "holdout": ("data.holdout=8",),
    "whitening": ("model.name=speednet94", "data.image_size=10", "ema.decay=0.9", "duration=2ep"),
}


def of(trainer: Trainer) -> dict[str, Any]:
    """Return a copy of all that later steps would read."""
    state = trainer.state
    values = state.state_dict()
    kept = {key: values[key] for key in ("step", "optimizer", "scaler", "rng", "lookahead") if key in values}
    average = dict(state.ema.model.state_dict()) if state.ema is not None else {}
    everything = {**kept, "weights": dict(state.model.state_dict()), "ema": average}
    return map_tensors(everything, lambda tensor: tensor.detach().clone())


def tensors(state: TrainState) -> Iterator[torch.Tensor]:
    """Yield the tensors that a captured step reads and writes."""
    models = [state.model, *([state.ema.model] if state.ema is not None else [])]
    for model in models:
        yield from (*model.parameters(), *model.buffers())
    yield from (value for entry in state.optimizer.state.values() for value in entry.values())
    yield from (group["lr"] for group in state.optimizer.param_groups)
    yield from (state.lookahead.slow if state.lookahead is not None else ())
    yield state.totals.values
    scaler = state.precision.scaler
    if scaler.is_enabled():
        assert scaler._scale is not None and scaler._growth_tracker is not None
        yield from (scaler._scale, scaler._growth_tracker)


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_a_seed_is_the_run_of_a_fresh_trainer(keys: tuple[str, ...]):
    config = tiny_config(*keys)
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    memory = [tensor.data_ptr() for tensor in tensors(rig.trainer.state)]
    for seed in (config.seed, config.seed + 1):
        of_seed = tiny_config(*keys, f"seed={seed}")
        timed = rig.train(of_seed)
        weights = of(rig.trainer)
        fresh = tiny_trainer(of_seed)
        figures = fresh.fit().figures()
        assert timed.accuracies == {"one view": figures.accuracy, **figures.other_accuracies()}
        assert_equal(weights, of(fresh))
        assert timed.seed == seed and timed.seconds > 0
    assert memory == [tensor.data_ptr() for tensor in tensors(rig.trainer.state)]
    rig.check()


def test_the_first_seed_again_gives_the_same_once_more():
    config = tiny_config()
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    runs = []
    for seed in (3, 4, 3):
        rig.train(tiny_config(f"seed={seed}"))
        runs.append(of(rig.trainer))
    assert_equal(runs[2], runs[0])
    with pytest.raises(AssertionError):
        assert_equal(runs[1]["weights"], runs[0]["weights"])


def test_nothing_is_logged_evaluated_or_saved_on_the_way(monkeypatch: pytest.MonkeyPatch):
    config = tiny_config("data.holdout=8")
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    evaluated: list[object] = []
    for name in ("log_window", "evaluate_all", "save"):
        monkeypatch.setattr(Trainer, name, lambda *_: pytest.fail("this takes time"))
    evaluate = Trainer.evaluate_weights
    monkeypatch.setattr(
        Trainer,
        "evaluate_weights",
        lambda trainer, loader: evaluated.append(loader) or evaluate(trainer, loader),
    )
    rig.train(config)
    assert evaluated == [rig.trainer.loaders.test]


def test_the_rig_is_built_and_warmed_up_on_random_images(monkeypatch: pytest.MonkeyPatch):
    """The images of the data set are first looked at by the run that is timed, whitening included."""
    config = tiny_config("model.name=speednet94", "data.image_size=10")
    splits = tiny_splits(config)
    pixels, looked_at = ImageSet.pixels, []
    monkeypatch.setattr(
        ImageSet, "pixels", lambda part, samples: looked_at.append(part) or pixels(part, samples)
    )
    rig = WholeRunRig(config, splits, connect(config))
    model = rig.trainer.state.model
    assert isinstance(model, SpeedNet)
    of_noise = model.stem.weight.clone()
    assert splits.train not in looked_at
    assert _images(rig.trainer.splits).shape == _images(splits).shape
    assert not np.array_equal(_images(rig.trainer.splits), _images(splits))
    rig.train(config)
    assert looked_at[-1] is splits.train
    assert not torch.equal(model.stem.weight, of_noise)


def _images(splits: Splits | None) -> np.ndarray:
    assert splits is not None and isinstance(splits.train, ImageSet)
    return splits.train.images


def test_every_phase_is_warmed_up_however_short():
    groups = "optimizer.groups=[{match: stem.*, until: 1st}, {match: '*bias', until: 2st}]"
    config = tiny_config("compile.drop_ended=true", groups)
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    step = rig.trainer.step
    assert [phase.first_step for phase in step.phases] == [0, 1, 2]
    assert {first: shape.eager_left for (_, first), shape in step._shapes.items()} == {0: 0, 1: 0, 2: 0}


def test_random_splits_have_the_shapes_and_classes_of_the_data_set():
    splits = tiny_splits(tiny_config("data.holdout=8"))
    noise = random_splits(splits)
    assert noise.holdout is None and noise.class_names == splits.class_names
    for part, replaced in ((splits.train, noise.train), (splits.test, noise.test)):
        assert len(part) == len(replaced) and part.image_size == replaced.image_size
    noise.check_labels()


def test_whitening_is_the_same_from_images_on_the_device():
    config = tiny_config("model.name=speednet94", "data.image_size=10")
    splits = tiny_splits(config)
    filters = []
    for pixels in (None, torch.from_numpy(_images(splits).copy())):
        model = build_initial_model(config, splits.num_classes, torch.device("cpu"))
        fit_to_images(model, splits, pixels)
        assert isinstance(model, SpeedNet)
        filters.append(model.stem.weight)
    assert torch.equal(*filters)


def test_an_evaluation_that_is_captured_after_warm_up_is_refused(monkeypatch: pytest.MonkeyPatch):
    config = tiny_config()
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    rig.check()
    monkeypatch.setattr(Evaluator, "num_captured", 1)
    with pytest.raises(TrainingError, match="captured 1 more times"):
        rig.check()


def test_the_longest_phase_and_the_evaluation_are_profiled(monkeypatch: pytest.MonkeyPatch):
    """The steps stay in their phase, and the next seed trains as if nothing had been profiled."""
    config = tiny_config(*METHODS["ended groups"])
    rig = WholeRunRig(config, tiny_splits(config), connect(config))
    rig.train(config)
    weights, phases = of(rig.trainer), list(rig.trainer.step.phases)
    assert [phase.first_step for phase in phases] == [0, 2, 10]
    seen: list[tuple[int, object]] = []

    def profile(work: Callable[[], object], device: torch.device, repeats: int) -> list[KernelShare]:
        for _ in range(repeats):
            seen.append((rig.trainer.state.step, rig.trainer.step.phase))
            work()
        return [KernelShare("wgrad", 5.0, 1.0, 2.0)]

    monkeypatch.setattr(whole_run, "profile_kernels", profile)
    step, evaluation = rig.profile()
    assert step.work == "a step, 8 from step 2 on" and evaluation.work == "the evaluation"
    assert [number for number, _ in seen[:8]] == list(range(2, 10))
    assert {id(phase) for _, phase in seen[:8]} == {id(phases[1])} and len(seen) == 9
    assert step.rows[0].name == "wgrad" and step.microseconds > 0 < evaluation.microseconds
    rig.train(config)
    assert_equal(of(rig.trainer), weights)
