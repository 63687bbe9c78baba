"""Tests the groups of parameters with rates, decay and ends of their own."""

import pytest
import torch

from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import build_model
from pipeline.optim.parts import partition
from pipeline.training.trainer import Trainer
from tests.tiny import random_batch, tiny_config, tiny_trainer

GROUPS = "optimizer.groups=[{match: head.*, lr_ratio: 3, weight_decay: 0.0}, {match: '*bias', until: 50%}]"


def rates(trainer: Trainer, step: int) -> list[float]:
    trainer.state.step = step
    trainer.step(random_batch())
    return [group["lr"].item() for group in trainer.state.optimizer.param_groups]


def test_the_first_entry_that_fits_counts():
    config = tiny_config(GROUPS)
    model = build_model(ModelConfig(name="resnet20"), 10)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rest, head, biases = partition(config.optimizer, model)
    assert {names[id(p)] for p in head.parameters} == {"head.weight", "head.bias"}
    assert (head.lr_ratio, head.weight_decay, head.until) == (3.0, 0.0, None)
    assert biases.parameters and all(names[id(p)].endswith("bias") for p in biases.parameters)
    assert (biases.lr_ratio, biases.weight_decay, biases.until) == (1.0, config.optimizer.weight_decay, "50%")
    assert len(rest.parameters) + len(head.parameters) + len(biases.parameters) == len(names)


def test_muon_s_parts_come_first_and_keep_their_ratios():
    groups = GROUPS.replace("head.", "stages.2.")
    config = tiny_config("optimizer.name=muon", "optimizer.sgd_lr_ratio=5", groups)
    parts = partition(config.optimizer, build_model(ModelConfig(name="resnet20"), 10))
    assert [(part.orthogonalised, part.lr_ratio) for part in parts] == [
        (True, 1.0),
        (True, 3.0),
        (False, 5.0),
        (False, 15.0),
        (False, 5.0),
    ]


@pytest.mark.usefixtures("process_state")
def test_the_schedule_of_a_group_ends_at_its_own_end():
    trainer = tiny_trainer(tiny_config(GROUPS, "schedule.name=linear", "schedule.warmup=0ep"))
    peak, end = trainer.config.optimizer.lr, round(trainer.plan.total_steps / 2)
    for step in (0, end // 2, end - 1):
        run, head, biases = rates(trainer, step)
        assert run == pytest.approx(trainer.plan.lr_at(step)) and head == pytest.approx(3 * run)
        assert biases == pytest.approx(peak * (1 - step / end))
    bias = trainer.state.model.get_parameter("stem.1.bias")
    before = bias.detach().clone()
    assert rates(trainer, end)[2] == 0
    assert torch.equal(bias, before)


@pytest.mark.parametrize("value", ["[{match: nothing.*}]", "[{match: '*'}, {match: nothing.*}]"])
def test_a_pattern_that_fits_nothing_is_refused(value: str):
    config = tiny_config(f"optimizer.groups={value}")
    with pytest.raises(UserError, match=r"optimizer.groups: 'nothing.\*' fits no trained parameter"):
        partition(config.optimizer, build_model(ModelConfig(name="resnet20"), 10))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[{match: head.*, lr: 1}]", ("optimizer.groups", "lr", "match, lr_ratio, weight_decay, until")),
        ("[{lr_ratio: 1}]", ("optimizer.groups", "match", "required")),
        ("[{match: head.*, until: 5}]", ("optimizer.groups", "until", "500st")),
        ("[head]", ("optimizer.groups", "'head'", "match")),
        ("head", ("optimizer.groups", "list")),
        ("[{match: head.*, lr_ratio: x}]", ("optimizer.groups", "lr_ratio")),
    ],
)
def test_a_wrong_entry_is_named(value: str, words: tuple[str, ...]):
    with pytest.raises(UserError) as error:
        tiny_config(f"optimizer.groups={value}")
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)
