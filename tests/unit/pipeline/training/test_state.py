"""What survives a restart survives it bit for bit."""

import copy
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run.checkpoint import folder_of
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.records import BestEvaluation
from pipeline.training.clock import Window
from pipeline.training.state import Totals, TrainState, load_checkpoint
from tests.tiny import (
    a_train_record,
    assert_equal,
    in_precision,
    random_batch,
    start,
    train_steps,
)

pytestmark = pytest.mark.usefixtures("process_state")


def whole(state: TrainState) -> dict[str, Any]:
    average = dict(state.ema.model.state_dict()) if state.ema is not None else {}
    return {"weights": dict(state.model.state_dict()), "ema": average, **state.state_dict()}


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("optimizer.momentum=0.0", "optimizer.nesterov=false"),
        ("optimizer.decay_norm_and_bias=false", "ema.decay=0.9"),
        ("optimizer.name=adamw", "optimizer.lr=0.01"),
        ("optimizer.name=muon", "optimizer.sgd_lr_ratio=2.0"),
    ],
)
def test_a_saved_state_comes_back_bit_for_bit(tmp_path: Path, mode: str, keys: tuple[str, ...]):
    """The whole state is restored, and training continues alike.

    Compared are weights, statistics, averages, momentum, loss scale, open window, best, clock and generator.
    """
    overrides = [*in_precision(mode, "precision.init_scale=64.0", "precision.growth_interval=4"), *keys]
    old = start(*overrides)
    train_steps(old, 6)
    old.state.best = BestEvaluation(accuracy=0.5, step=5, selected_on="test", test_accuracy=0.5)
    old.state.last_train = a_train_record(6, loss=1.25)
    old.state.clock = {"windows": [asdict(Window(10.0, 0.8, 0.0, 2))], "train_s": 1.5}
    writer = CheckpointWriter(tmp_path, "hash")
    writer.save(old.state.snapshot())
    writer.close()

    new = start(*overrides, "seed=9")
    torch.rand(5)
    load_checkpoint(folder_of(tmp_path, 6), new.state)
    assert_equal(whole(new.state), whole(old.state))
    shared, expected = (
        [id(group["lr"]) for group in state.optimizer.param_groups] for state in (new.state, old.state)
    )
    assert [shared.index(lr) for lr in shared] == [expected.index(lr) for lr in expected]
    assert shared[0] == id(new.state.lr)

    for batch in (random_batch(seed=seed) for seed in range(3)):
        new.step(batch)
        old.step(batch)
    old.state.clock = new.state.clock
    assert_equal(whole(new.state), whole(old.state))


def test_momentum_of_another_memory_layout_is_laid_out_like_the_weight():
    """A fused optimizer reads both in the order of memory, and would mix up elements without an error."""
    old, new = start(), start()
    train_steps(old, 1)
    saved = copy.deepcopy(old.state.state_dict())
    for state in saved["optimizer"]["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    new.state.model.load_state_dict(old.state.model.state_dict())
    new.state.load_state_dict(saved)
    for trainer in (old, new):
        trainer.step(random_batch())
    assert_equal(dict(new.state.model.state_dict()), dict(old.state.model.state_dict()))


def test_a_snapshot_is_not_changed_by_later_steps(tmp_path: Path):
    trainer = start()
    train_steps(trainer, 1)
    weights = {key: value.clone() for key, value in trainer.state.model.state_dict().items()}
    writer = CheckpointWriter(tmp_path, "hash")
    writer.save(trainer.state.snapshot())
    train_steps(trainer, 2)  # while the thread writes
    writer.close()
    other = start("seed=9")
    load_checkpoint(folder_of(tmp_path, 1), other.state)
    assert_equal(dict(other.state.model.state_dict()), weights)


def test_the_rest_of_the_state_holds_tensors_numbers_and_strings_only():
    trainer = start("precision.mode=fp16")
    train_steps(trainer, 1)
    buffer = io.BytesIO()
    torch.save(trainer.state.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)["step"] == 1


def test_totals_leave_out_what_was_skipped():
    totals = Totals(torch.device("cpu"))
    ok, skipped = torch.tensor(0.0), torch.tensor(1.0)
    totals.add(torch.tensor(2.0), torch.tensor(3), 4, ok)
    totals.add(torch.tensor(float("nan")), torch.tensor(4), 4, skipped)
    totals.add(torch.tensor(float("inf")), torch.tensor(4), 4, skipped)
    assert totals.values.tolist() == [8, 3, 4, 2, 2]
    totals.start_window()
    totals.add(torch.tensor(1.0), torch.tensor(1), 4, ok)
    assert totals.values.tolist() == [4, 1, 4, 2, 0]
    assert totals.values.dtype == torch.float64


def test_totals_without_a_loss_scale_are_the_same():
    totals, scaled = Totals(torch.device("cpu")), Totals(torch.device("cpu"))
    for loss, correct in ((2.0, torch.tensor(3)), (0.5, torch.tensor(1.5))):
        totals.add(torch.tensor(loss), correct, 4, None)
        scaled.add(torch.tensor(loss), correct, 4, torch.tensor(0.0))
    assert totals.values.tolist() == scaled.values.tolist() == [10, 4.5, 8, 0, 0]


def test_infinities_are_an_error_but_in_a_mask():
    """A buffer may be the mask of an attention; a run with such a network saved no checkpoint."""
    state = start().state
    state.model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    assert state.is_finite()
    tensors = dict(state.model.named_parameters()) | dict(state.model.named_buffers())
    for name, broken in (("head.bias", torch.inf), ("stem.1.running_var", torch.inf), ("mask", torch.nan)):
        value = tensors[name].detach()
        first = value[0].clone()
        value[0] = broken
        assert not state.is_finite(), name
        value[0] = first
    assert state.is_finite()
