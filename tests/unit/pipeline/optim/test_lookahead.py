"""Tests Lookahead against its definition, in a run, and over a restart."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from pipeline.optim.lookahead import Lookahead
from tests.tiny import random_batch, tiny_config, tiny_trainer


def test_an_update_is_the_definition():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    lookahead = Lookahead(model)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    lookahead.update(0.75)
    for name, value in model.state_dict().items():
        share = 1.0 if name in ("0.bias", "1.num_batches_tracked") else 0.25
        torch.testing.assert_close(value, start[name] + share, check_dtype=False)


@pytest.mark.usefixtures("process_state")
def test_a_run_goes_back_at_its_interval():
    keys = ("lookahead.every=3st", "lookahead.decay=0.5", "lookahead.power=2", "augment.mix=none")
    slow, plain = tiny_trainer(tiny_config(*keys)), tiny_trainer(tiny_config())
    first = plain.state.model.get_parameter("head.weight").detach().clone()
    for step in range(3):
        for trainer in (slow, plain):
            trainer.step(random_batch(seed=step))
    share = 0.5 * (3 / slow.plan.total_steps) ** 2
    ours, theirs = (trainer.state.model.get_parameter("head.weight") for trainer in (slow, plain))
    torch.testing.assert_close(ours, share * first + (1 - share) * theirs)
    assert not torch.equal(ours, theirs)


@pytest.mark.usefixtures("process_state")
def test_a_run_that_is_continued_is_one_that_was_not_interrupted():
    def run(*stops: int) -> torch.Tensor:
        config = tiny_config("lookahead.every=2st")
        trainer = tiny_trainer(config)
        saved = trainer.state.snapshot()
        for begin, end in pairwise((0, *stops)):
            trainer = tiny_trainer(config)
            trainer.state.restore(saved)
            for step in range(begin, end):
                trainer.step(random_batch(seed=step))
            saved = trainer.state.snapshot()
        return trainer.state.model.get_parameter("head.weight").detach()

    assert torch.equal(run(6), run(3, 6))


def test_a_mask_of_infinities_stays_one():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    Lookahead(model).update(0.5)
    assert model.get_buffer("mask").tolist() == [0.0, -torch.inf]
