"""Tests the moving average of the weights against its definition as a weighted mean."""

import copy

import pytest
import torch
from torch import nn

from pipeline.optim.ema import Ema
from tests.tiny import in_precision, random_batch, tiny_config, tiny_trainer, train_steps

OK, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(3)


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if value.is_floating_point()}


def walk(model: nn.Module, step: int) -> None:
    """Change weights and statistics in place, as an optimizer and batch norm do."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_it_is_the_weighted_mean_of_all_steps_and_of_none_before(decay: float):
    """Weights and batch-norm statistics are averaged alike; the initial weights are not included."""
    model = Net()
    ema, history = Ema(model, copy.deepcopy(model), decay), []
    for step in range(6):
        walk(model, step)
        history.append(tensors(model))
        ema.set_step(step)
        ema.update(OK)
        shares = torch.tensor([decay ** (step - i) for i in range(step + 1)], dtype=torch.float64)
        shares /= shares.sum()
        for key, value in tensors(ema.model).items():
            expected = sum(
                (share * past[key].double() for share, past in zip(shares, history, strict=True)),
                torch.zeros(()),
            )
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert not ema.model.training and not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(value.equal(history[-1][key]) for key, value in tensors(model).items()), (
        "the weights themselves were changed"
    )


def test_with_an_interval_it_is_the_mean_of_those_steps_only():
    model = Net()
    every, sparse, dense = 3, Ema(model, copy.deepcopy(model), 0.8), None
    for step in range(9):
        walk(model, step)
        sparse.set_step(step, every)
        sparse.update(OK)
        if (step + 1) % every == 0:
            dense = dense or Ema(model, copy.deepcopy(model), 0.8)
            dense.set_step(step // every)
            dense.update(OK)
        if dense is not None:
            torch.testing.assert_close(tensors(sparse.model), tensors(dense.model))


def test_it_ends_where_that_of_torchvisions_recipe_ends():
    """See `references/classification/train.py`: an average every 32 steps; batch and epochs scale it."""
    decay, batch, epochs, every = 0.99998, 1024, 600, 32
    share = min(1.0, (1 - decay) * batch * every / epochs)
    model = Net()
    ours = Ema(model, copy.deepcopy(model), 1 - share)
    theirs = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda average, newest, _: (1 - share) * average + share * newest, use_buffers=True
    )
    for step in range(200 * every):
        if (step + 1) % every == 0:
            walk(model, step % 64)
            theirs.update_parameters(model)
        ours.set_step(step, every)
        ours.update(OK)
    # theirs begins with the first weights themselves, of which it keeps this surplus; it fades in a long run
    surplus = (1 - share) ** 200
    walk(model, every - 1)
    for key, value in tensors(ours.model).items():
        mean = theirs.module.state_dict()[key] - surplus * tensors(model)[key]
        torch.testing.assert_close(value, mean / (1 - surplus), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("process_state")
def test_in_training_the_interval_is_that_of_the_config():
    trainer = tiny_trainer(tiny_config("ema.decay=0.0", "ema.every=2st"))
    ema = trainer.state.ema
    assert ema is not None
    seen = []
    for _ in range(4):
        train_steps(trainer, 1)
        head = "head.weight"
        seen.append(torch.allclose(ema.model.get_parameter(head), trainer.state.model.get_parameter(head)))
    assert seen == [False, True, False, True]


def test_a_skipped_step_leaves_it_alone():
    model = Net()
    ema = Ema(model, copy.deepcopy(model), 0.5)
    walk(model, 0)
    ema.set_step(0)
    ema.update(OK)
    before = tensors(ema.model)
    walk(model, 1)
    ema.set_step(1)
    ema.update(SKIPPED)
    assert all(value.equal(before[key]) for key, value in tensors(ema.model).items())


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("mode", ["fp32", "fp16"])
def test_in_training_it_follows_the_steps(mode: str):
    trainer = tiny_trainer(tiny_config("ema.decay=0.8", *in_precision(mode)))
    state, oracle = (
        trainer.state,
        torch.optim.swa_utils.AveragedModel(trainer.state.model, multi_avg_fn=None, avg_fn=_unbiased),
    )
    assert state.ema is not None
    for seed in range(4):
        trainer.step(random_batch(seed=seed))
        oracle.update_parameters(state.model)
    for key, value in oracle.module.named_parameters():
        torch.testing.assert_close(state.ema.model.get_parameter(key), value, rtol=1e-5, atol=1e-7)


def _unbiased(average: torch.Tensor, newest: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """AveragedModel calls it from its second update on."""
    return average + (1 - 0.8) / (1 - 0.8 ** (int(count) + 1)) * (newest - average)


@pytest.mark.usefixtures("process_state")
def test_an_overflow_in_training_leaves_it_alone():
    trainer = tiny_trainer(tiny_config("ema.decay=0.5", "precision.mode=fp16", "precision.init_scale=1024.0"))
    ema = trainer.state.ema
    assert ema is not None
    train_steps(trainer, 2)
    before = tensors(ema.model)
    hook = trainer.state.model.get_parameter("head.bias").register_hook(
        lambda gradient: torch.full_like(gradient, torch.inf)
    )
    assert trainer.step(random_batch()).found_inf.item() == 1
    hook.remove()
    assert all(value.equal(before[key]) for key, value in tensors(ema.model).items())
    trainer.step(random_batch())
    assert not all(value.equal(before[key]) for key, value in tensors(ema.model).items())


@pytest.mark.usefixtures("process_state")
def test_it_changes_nothing_in_training():
    plain, averaged = (tiny_trainer(tiny_config(*keys)) for keys in ((), ("ema.decay=0.9",)))
    assert train_steps(plain, 4) == train_steps(averaged, 4)


def test_a_mask_of_infinities_stays_one():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = Ema(model, copy.deepcopy(model), 0.9)
    average.set_step(0)
    average.update(OK)
    assert average.model.get_buffer("mask").tolist() == [0.0, -torch.inf]
