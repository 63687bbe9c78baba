"""Tests Muon against torch's own, and on convolutions, found_inf and a device learning rate."""

from typing import Any

import pytest
import torch
from torch import nn

from kernels.muon.reference import orthogonalise
from pipeline.config import AdamwConfig, ModelConfig, MuonConfig
from pipeline.errors import UserError
from pipeline.models import build_model
from pipeline.optim.muon import Muon
from pipeline.optim.optimizer import build_optimizer
from pipeline.optim.plain import Sgd
from tests.tiny import in_precision, random_batch, tiny_config, tiny_trainer, train_steps

DEFAULT = MuonConfig()
SHAPES = [(6, 6), (4, 9), (12, 5), (4, 9), (1, 3)]


def matrices(seed: int, shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def muon(
    parameters: list[torch.Tensor],
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    lr: float = 0.02,
) -> Muon:
    group = {"params": parameters, "lr": torch.tensor(lr), "weight_decay": weight_decay}
    return Muon([group], [], MuonConfig(momentum=momentum, nesterov=nesterov))


@pytest.mark.parametrize(("steps", "coefficients"), [(1, (3.4445, -4.775, 2.0315)), (3, (3.0, -3.2, 1.2))])
def test_steps_and_coefficients_are_torch_s(steps: int, coefficients: tuple[float, float, float]):
    ours, theirs = matrices(0, SHAPES), matrices(0, SHAPES)
    config = MuonConfig(newton_schulz_steps=steps, newton_schulz_coefficients=coefficients)
    optimizer = Muon([{"params": ours, "lr": torch.tensor(0.02), "weight_decay": 0.0}], [], config)
    keys: dict[str, Any] = {"ns_steps": steps, "ns_coefficients": coefficients, "momentum": 0.9}
    oracle = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, nesterov=True, **keys)
    for mine, other, gradient in zip(ours, theirs, matrices(1, SHAPES), strict=True):
        mine.grad, other.grad = gradient.clone(), gradient.clone()
    optimizer.step()
    oracle.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)


def test_renormalised_weights_have_the_norm_of_their_rows_before_the_update():
    shapes: list[tuple[int, ...]] = [(6, 6), (4, 9), (8, 3, 2, 2)]
    parameters, plain = matrices(0, shapes), matrices(0, shapes)
    for weight in plain:  # what the definition says, one weight after the other
        weight.mul_(len(weight) ** 0.5 / weight.square().sum().sqrt())
    group = {"params": parameters, "lr": torch.tensor(0.02), "weight_decay": 0.0}
    optimizer = Muon([group], [], MuonConfig(renormalise_every="2st"))
    oracle = muon(plain)
    assert optimizer.renormalise is not None
    for switch in (1.0, 0.0):
        optimizer.renormalise.fill_(switch)
        for mine, other, gradient in zip(parameters, plain, matrices(1, shapes), strict=True):
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        oracle.step()
        for mine, other in zip(parameters, plain, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_matrices_move_as_with_torch_s(nesterov: bool, weight_decay: float):
    """Both iterate in bfloat16: torch one matrix at a time, ours all matrices of one shape together."""
    ours, theirs = matrices(0, SHAPES), matrices(0, SHAPES)
    optimizer = muon(ours, 0.9, nesterov, weight_decay)
    oracle = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    for step in range(1, 4):
        for mine, other, gradient in zip(ours, theirs, matrices(step, SHAPES), strict=True):
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        oracle.step()
    for mine, other, start in zip(ours, theirs, matrices(0, SHAPES), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)
        assert (mine - start).abs().max() > 1e-2


def test_a_matrix_without_a_gradient_is_left_alone():
    """torch's optimizers do the same: a user's network may have a layer that a step does not use."""
    moved = matrices(0, SHAPES)
    optimizer = muon(moved)
    for used in (0, 1):
        moved[used].grad = torch.ones_like(moved[used])
    optimizer.step()
    assert [not torch.equal(new, old) for new, old in zip(moved, matrices(0, SHAPES), strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_all_groups_are_there_after_a_step_of_sgd_that_failed(monkeypatch: pytest.MonkeyPatch):
    """SGD sees only the groups after Muon's, for the time of its step."""
    matrix, other = (torch.ones(2, 2, requires_grad=True) for _ in range(2))
    groups = [{"params": [p], "lr": torch.tensor(0.1), "weight_decay": 0.0} for p in (matrix, other)]
    optimizer = Muon(groups[:1], groups[1:], MuonConfig())
    seen: list[Any] = []

    def fail(optimizer: torch.optim.SGD) -> None:
        seen.extend(group["params"] for group in optimizer.param_groups)
        raise RuntimeError("no memory")

    monkeypatch.setattr(Sgd, "step", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        optimizer.step()
    assert [params[0] is other for params in seen] == [True]
    assert [id(group["params"][0]) for group in optimizer.param_groups] == [id(matrix), id(other)]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (2, 40, 8)])
def test_singular_values_become_ones_roughly(shape: tuple[int, ...]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    actual = orthogonalise(matrices, 5, DEFAULT.newton_schulz_coefficients).float()
    values = torch.linalg.svdvals(actual)
    assert values.min() > 0.6 and values.max() < 1.3
    # the directions stay the same: the rest is the error of the singular values
    along = torch.diagonal(u.mT @ actual @ v.mT, dim1=1, dim2=2)
    torch.testing.assert_close(along.sort(dim=1, descending=True).values, values, rtol=0, atol=0.03)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_a_matrix_of_one_row_per_output_channel(memory_format: torch.memory_format):
    weight, gradient = matrices(0, [(6, 3, 2, 2)])[0], matrices(1, [(6, 3, 2, 2)])[0]
    conv = weight.clone(memory_format=memory_format)
    conv.grad = gradient.clone(memory_format=memory_format)
    flat = weight.flatten(1)
    flat.grad = gradient.flatten(1)
    for parameter in (conv, flat):
        muon([parameter], weight_decay=0.1).step()
    # columns in another order are summed in another order
    torch.testing.assert_close(conv.flatten(1), flat, rtol=0, atol=1e-3)
    assert conv.is_contiguous(memory_format=memory_format)


def test_a_skipped_step_leaves_everything_alone():
    parameters = matrices(0, SHAPES)
    optimizer = muon(parameters, weight_decay=0.1)

    def step(found_inf: float, seed: int, poison: bool = False) -> None:
        for parameter, gradient in zip(parameters, matrices(seed, SHAPES), strict=True):
            parameter.grad = gradient
        if poison:
            assert parameters[0].grad is not None
            parameters[0].grad[0, 0] = torch.inf
        optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()

    def everything() -> list[torch.Tensor]:
        return [
            value.clone()
            for parameter in parameters
            for value in (parameter, optimizer.state[parameter]["momentum_buffer"])
        ]

    step(0.0, 1)
    before = everything()
    step(1.0, 2, poison=True)
    assert all(torch.equal(new, old) for new, old in zip(everything(), before, strict=True))
    step(0.0, 3)
    assert all(
        torch.isfinite(value).all() and not torch.equal(value, old)
        for value, old in zip(everything(), before, strict=True)
    )


# --- in a network ---


def build(**keys: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = build_model(ModelConfig(name="resnet20", shortcut="B"), 10)
    return model, build_optimizer(MuonConfig.model_validate(keys), model)


def test_what_is_muon_s_and_what_is_sgd_s():
    model, optimizer = build(
        decay_norm_and_bias=False, weight_decay=0.1, sgd_weight_decay=0.01, sgd_lr_ratio=3.0, lr=0.2
    )
    mine, decayed, others = optimizer.param_groups
    convolutions = [p for name, p in model.named_parameters() if p.ndim == 4 and not name.startswith("stem")]
    assert [id(p) for p in mine["params"]] == [id(p) for p in convolutions]
    assert {id(p) for p in decayed["params"]} == {
        id(p) for p in (model.get_parameter("stem.0.weight"), model.get_parameter("head.weight"))
    }
    assert all(p.ndim == 1 for p in others["params"])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.01, 0]
    rates = [group["lr"].item() for group in optimizer.param_groups]
    assert rates == pytest.approx([0.2, 0.6, 0.6])


@pytest.mark.usefixtures("process_state")
def test_the_others_move_as_with_plain_sgd_at_their_share_of_the_rate():
    trainer = tiny_trainer(
        tiny_config("optimizer.name=muon", "optimizer.sgd_lr_ratio=0.5", "optimizer.sgd_weight_decay=0.01")
    )
    head = trainer.state.model.get_parameter("head.weight")
    copy = nn.Parameter(head.detach().clone())
    oracle = torch.optim.SGD([copy], lr=1.0, momentum=0.9, nesterov=True, weight_decay=0.01)
    seen: list[torch.Tensor] = []
    head.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    for step in range(3):
        trainer.step(random_batch(seed=step))
        oracle.param_groups[0]["lr"] = trainer.plan.lr_at(step) * 0.5
        copy.grad = seen[-1]
        oracle.step()
    torch.testing.assert_close(head, copy, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16"])
def test_it_learns_in_every_precision(name: str, mode: str):
    keys = (f"optimizer.name={name}", "optimizer.lr=0.02", *in_precision(mode))
    losses = train_steps(tiny_trainer(tiny_config(*keys)), 10)
    assert all(torch.isfinite(torch.tensor(losses))) and sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("clip", ["null", "1.0"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_overflow_skips_exactly_that_update(name: str, clip: str, first: bool):
    """A skipped update, even the first, changes no weight, no momentum and no step count of AdamW."""
    keys = (
        f"optimizer.name={name}",
        f"optimizer.clip_norm={clip}",
        "precision.mode=fp16",
        "precision.init_scale=1024.0",
    )
    trainer = tiny_trainer(tiny_config(*keys))
    state = trainer.state

    def everything() -> list[torch.Tensor]:
        held = [value for entry in state.optimizer.state.values() for value in entry.values()]
        return [value.detach().clone() for value in (*state.model.parameters(), *held)]

    if not first:
        train_steps(trainer, 2)
    before = everything()
    hook = state.model.get_parameter("head.bias").register_hook(
        lambda gradient: torch.full_like(gradient, torch.inf)
    )
    assert trainer.step(random_batch()).found_inf.item() == 1
    hook.remove()
    after = everything()
    # AdamW creates its state in its first step
    assert all(torch.equal(new, old) for new, old in zip(after, before, strict=False))
    assert not any(value.any() for value in after[len(before) :])
    assert trainer.step(random_batch()).found_inf.item() == 0
    assert all(torch.isfinite(value).all() for value in everything())
    assert not torch.equal(everything()[0], before[0])


def test_adamw_is_torch_s_with_one_rate_on_the_device():
    model = nn.Linear(4, 3)
    plain = nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    keys = {
        "name": "adamw",
        "lr": 0.1,
        "weight_decay": 0.2,
        "betas": (0.8, 0.95),
        "decay_norm_and_bias": False,
    }
    optimizer = build_optimizer(AdamwConfig.model_validate(keys), model)
    first, second = optimizer.param_groups
    assert first["lr"] == second["lr"] == torch.tensor(0.1) and first["fused"]
    oracle = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.2}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.8, 0.95),
    )
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for module, adamw in ((model, optimizer), (plain, oracle)):
            adamw.zero_grad()
            module(x).square().sum().backward()
            adamw.step()
    torch.testing.assert_close(model.weight, plain.weight)
    torch.testing.assert_close(model.bias, plain.bias)


def test_a_network_without_hidden_matrices_is_refused():
    with pytest.raises(
        UserError, match=r"optimizer\.name: muon is for the weights between the first and the last"
    ):
        build_optimizer(MuonConfig(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
