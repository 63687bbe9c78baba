"""Tests the optimizer's groups and buffers, and the learning rate as a function of the step."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline.config import ModelConfig, OptimizerConfig, ScheduleConfig
from pipeline.models import build_model
from pipeline.optim.optimizer import build_optimizer
from pipeline.optim.schedule import build_schedule, parts_after_the_end

TOTAL, PER_EPOCH, PEAK = 100, 10, 0.4


def schedule(total: int = TOTAL, **keys: Any) -> Any:
    return build_schedule(PEAK, TypeAdapter(ScheduleConfig).validate_python(keys), PER_EPOCH, total)


def rates(*steps: int, **keys: Any) -> list[float]:
    lr_at = schedule(**keys)
    return [lr_at(step) / PEAK for step in steps]


def test_linear():
    actual = rates(0, 10, 25, 50, 99, 100, warmup="25%", start_fraction=0.04, final_fraction=0.1)
    assert actual == pytest.approx(
        [0.04, 0.04 + 0.96 * 10 / 25, 1, 0.1 + 0.9 * 50 / 75, 0.1 + 0.9 * 1 / 75, 0.1]
    )


def test_linear_falls_to_nothing_after_the_last_step():
    assert rates(99, 100, warmup="25%") == pytest.approx([1 / 75, 0])


def test_cosine():
    actual = rates(0, 20, 60, 99, 100, name="cosine", warmup="2ep", start_fraction=0.5, final_fraction=0.2)
    assert actual == pytest.approx(
        [0.5, 1, 0.2 + 0.8 / 2, 0.2 + 0.8 * (1 + math.cos(math.pi * 79 / 80)) / 2, 0.2]
    )


def test_steps_fall_at_the_milestones_and_no_step_earlier():
    milestones = ["75%", "5ep"]  # in any order
    actual = rates(
        0,
        3,
        5,
        49,
        50,
        74,
        75,
        99,
        name="step",
        warmup="5st",
        start_fraction=0.0,
        milestones=milestones,
        gamma=0.1,
    )
    assert actual == pytest.approx([0, 3 / 5, 1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(("warmup", "final"), [(25, 0.0), (30, 0.01), (1, 0.0), (90, 0.2)])
def test_one_cycle_is_torch_s(warmup: int, final: float):
    """torch's peak is at step pct_start * total - 1 and its end at the last step; ours are one step later."""
    start = 0.04
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        PEAK,
        total_steps=TOTAL + 1,
        pct_start=(warmup + 1) / (TOTAL + 1),
        div_factor=1 / start,
        final_div_factor=start / final if final else 1e30,
    )
    expected = []
    for _ in range(TOTAL + 1):
        expected.append(oracle.get_last_lr()[0] / PEAK)
        optimizer.step()
        if len(expected) <= TOTAL:
            oracle.step()
    keys = {"name": "one_cycle", "warmup": f"{warmup}st", "start_fraction": start, "final_fraction": final}
    assert rates(*range(TOTAL + 1), **keys) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["linear", "one_cycle", "cosine", "step"])
def test_without_warmup_the_first_step_has_the_peak(name: str):
    keys = {"milestones": ["50%"]} if name == "step" else {}
    assert rates(0, name=name, warmup="0st", start_fraction=0.5, **keys) == [1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"name": "step", "warmup": "0st", "milestones": ["5ep", "99st", "99%"]}, ""),
        (
            {"name": "step", "warmup": "0st", "milestones": ["5ep", "20ep"]},
            "schedule.milestones: 20ep is not before the end of the run, 10ep",
        ),
        (
            {"name": "step", "warmup": "0st", "milestones": ["100st", "100%"]},
            "schedule.milestones: 100st and 100% are not before the end of the run, 10ep",
        ),
        ({"warmup": "100%"}, ""),
        ({"warmup": "11ep"}, "schedule.warmup: 11ep is longer than the run, 10ep"),
    ],
)
def test_parts_that_a_run_is_too_short_for_are_named(keys: dict[str, Any], expected: str):
    actual = parts_after_the_end(TypeAdapter(ScheduleConfig).validate_python(keys), "10ep", PER_EPOCH, TOTAL)
    assert [sentence.partition(":")[0] for sentence in actual] == [expected.partition(":")[0]] * bool(
        expected
    )
    assert all(sentence.startswith(f"{expected}: the learning rate does not ") for sentence in actual)


@pytest.mark.parametrize("name", ["linear", "one_cycle", "cosine"])
def test_every_rate_of_every_length_is_between_nothing_and_the_peak(name: str):
    for total in (1, 2, 3, 10):
        for warmup in ("0st", "1st", "50%", "100%", "20st"):
            lr_at = schedule(total, name=name, warmup=warmup)
            assert all(0 <= lr_at(step) <= PEAK for step in range(total + 1)), (total, warmup)
            assert lr_at(0) > 0


def test_the_rate_depends_on_the_step_alone():
    lr_at = schedule()
    forwards = [lr_at(step) for step in range(TOTAL)]
    assert [lr_at(step) for step in reversed(range(TOTAL))] == forwards[::-1]


def build(model: nn.Module | None = None, **keys: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = model or build_model(ModelConfig(name="resnet20", shortcut="B"), 10).to(
        memory_format=torch.channels_last
    )
    return model, build_optimizer(TypeAdapter(OptimizerConfig).validate_python(keys), model)


def test_all_parameters_are_in_one_group_with_the_penalty():
    model, optimizer = build(weight_decay=0.01)
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.01
    assert {id(p) for p in group["params"]} == {id(p) for p in model.parameters()}


def test_no_penalty_on_norms_and_biases():
    model, optimizer = build(weight_decay=0.01, decay_norm_and_bias=False)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0)
    norms = {
        id(p) for module in model.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()
    }
    biases = {id(p) for name, p in model.named_parameters() if name.endswith("bias")}
    assert {id(p) for p in others["params"]} == norms | biases
    assert {id(p) for p in decayed["params"]} == {id(p) for p in model.parameters()} - norms - biases


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    _, optimizer = build(model)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(model.weight)]


def test_fused_with_momentum_of_zeros_and_one_shared_rate():
    _, optimizer = build(lr=0.3, momentum=0.7, nesterov=False, decay_norm_and_bias=False)
    first, second = optimizer.param_groups
    assert first["lr"] == second["lr"] == torch.tensor(0.3) and isinstance(first["lr"], torch.Tensor)
    assert first["lr"].item() == pytest.approx(0.3)
    for group in optimizer.param_groups:
        assert (group["fused"], group["momentum"], group["nesterov"], group["dampening"]) == (
            True,
            0.7,
            False,
            0,
        )
        for parameter in group["params"]:
            buffer = optimizer.state[parameter]["momentum_buffer"]
            assert not buffer.any() and buffer.stride() == parameter.stride()


def test_no_momentum_no_buffers():
    _, optimizer = build(momentum=0.0, nesterov=False)
    assert not optimizer.state


@pytest.mark.parametrize(
    "keys", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": False}, {"momentum": 0.0, "nesterov": False}]
)
def test_updates_are_those_of_plain_sgd(keys: dict[str, Any]):
    torch.manual_seed(0)
    model, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    _, optimizer = build(model, lr=0.1, weight_decay=0.01, **keys)
    oracle = torch.optim.SGD(
        plain.parameters(),
        lr=0.1,
        weight_decay=0.01,
        momentum=keys["momentum"],
        nesterov=keys.get("nesterov", True),
        fused=False,
    )
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for module, sgd in ((model, optimizer), (plain, oracle)):
            sgd.zero_grad()
            module(x).square().sum().backward()
            sgd.step()
    torch.testing.assert_close(model.weight, plain.weight)
