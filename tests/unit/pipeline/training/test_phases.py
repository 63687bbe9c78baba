"""Tests the steps after parameters have reached `until`: the same weights, without their gradients."""

import pytest
import torch

from pipeline.config.rules import find_no_effect
from pipeline.errors import UserError
from pipeline.training.trainer import Trainer
from tests.tiny import assert_equal, tiny_config, tiny_trainer, train_steps

pytestmark = pytest.mark.usefixtures("process_state")

STEPS = 8
GROUPS = "optimizer.groups=[{match: stem.*, until: 3st}, {match: '*bias', until: 5st}]"
DROP = "compile.drop_ended=true"
SPEEDNET = (
    "model.name=speednet94",
    "data.image_size=10",
    "optimizer.groups=[{match: stem.bias, until: 3st}]",
)
METHODS = {
    "sgd": (GROUPS, "optimizer.weight_decay=0.01"),
    "adamw": (GROUPS, "optimizer.name=adamw", "optimizer.lr=0.01"),
    "muon": (GROUPS, "optimizer.name=muon", "optimizer.weight_decay=0.01"),
    "renormalised": (
        "optimizer.name=muon",
        "optimizer.renormalise_every=2st",
        "optimizer.groups=[{match: '*bias', until: 4st}, {match: 'stages.0.*', until: 3st}]",
    ),
    "lookahead and average": (GROUPS, "lookahead.every=2st", "ema.decay=0.9"),
    "two micro-batches": (GROUPS, "optimizer.accumulate=2"),
    "whitening": SPEEDNET,
}


def trained(*keys: str) -> Trainer:
    trainer = tiny_trainer(tiny_config(*keys))
    train_steps(trainer, STEPS)
    return trainer


@pytest.mark.parametrize("keys", METHODS.values(), ids=METHODS)
def test_the_weights_are_those_of_one_phase(keys: tuple[str, ...]):
    one, several = trained(*keys), trained(*keys, DROP)
    assert len(one.step.phases) == 1 and len(several.step.phases) > 1
    assert_equal(dict(several.state.model.state_dict()), dict(one.state.model.state_dict()))
    if one.state.ema is not None and several.state.ema is not None:
        assert_equal(several.state.ema.model.state_dict(), one.state.ema.model.state_dict())
    assert all(p.requires_grad for p in several.state.model.parameters()) or keys == SPEEDNET


@pytest.mark.parametrize(("until", "first_step"), [(3, 5), (4, 5), (5, 7)])
def test_renormalised_matrices_end_after_their_next_renormalisation(until: int, first_step: int):
    groups = f"optimizer.groups=[{{match: 'stages.0.*.conv1.weight', until: {until}st}}]"
    keys = "optimizer.name=muon", "optimizer.lr=0.05", "optimizer.renormalise_every=2st", groups
    one, several = trained(*keys), trained(*keys, DROP)
    assert [phase.first_step for phase in several.step.phases] == [0, first_step]
    weights = dict(one.state.model.named_parameters())
    for name, weight in several.state.model.named_parameters():
        # to renormalise once more rounds, which Muon amplifies in the matrices that are still trained
        is_ended = name.startswith("stages.0") and name.endswith("conv1.weight")
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6 if is_ended else 1e-3)


def test_a_run_goes_on_when_all_its_parameters_have_ended():
    groups = "optimizer.groups=[{match: stem.*, until: 2st}, {match: '*', until: 3st}]"
    one, several = trained(groups), trained(groups, DROP)
    assert [phase.first_step for phase in several.step.phases] == [0, 2]
    assert_equal(dict(several.state.model.named_parameters()), dict(one.state.model.named_parameters()))


def test_an_ended_parameter_gets_no_gradient():
    trainer = tiny_trainer(tiny_config(GROUPS, DROP))
    gradients: dict[str, int] = {}
    for name, parameter in trainer.state.model.named_parameters():
        gradients[name] = 0

        def count(_: torch.Tensor, name: str = name) -> None:
            gradients[name] += 1

        parameter.register_post_accumulate_grad_hook(count)
    assert [phase.first_step for phase in trainer.step.phases] == [0, 3, 5]
    train_steps(trainer, STEPS)
    for name, number in gradients.items():
        assert number == (3 if name.startswith("stem.") else 5 if name.endswith("bias") else STEPS), name
    trainer.state.step = 0  # as when a run starts again
    train_steps(trainer, 1)
    assert gradients["stem.0.weight"] == 4


@pytest.mark.parametrize(
    "keys",
    [
        (GROUPS,),
        (DROP, "optimizer.groups=[{match: stem.*}]"),
        (DROP, "optimizer.groups=[{match: stem.*, until: 100%}]"),
        (DROP, GROUPS, "optimizer.clip_norm=1.0"),
        (
            *(DROP, "optimizer.name=muon", "optimizer.renormalise_every=100%"),
            "optimizer.groups=[{match: 'stages.0.0.conv1.weight', until: 3st}]",
        ),
    ],
    ids=[
        "without the key",
        "no until",
        "the end of the run",
        "the norm is clipped",
        "renormalised at the end",
    ],
)
def test_a_run_of_one_phase(keys: tuple[str, ...]):
    assert [phase.first_step for phase in tiny_trainer(tiny_config(*keys)).step.phases] == [0]


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [((DROP,), "has `until`"), ((DROP, GROUPS, "optimizer.clip_norm=1.0"), "optimizer.clip_norm")],
    ids=["no until", "the norm is clipped"],
)
def test_the_key_without_effect_is_named(keys: tuple[str, ...], remedy: str):
    (found,) = find_no_effect(tiny_config(*keys))
    assert list(found.keys) == ["compile.drop_ended"] and remedy in found.reason
    assert not list(find_no_effect(tiny_config(DROP, GROUPS)))
    with pytest.raises(UserError, match=r"compile\.drop_ended"):
        tiny_config("compile.drop_ended=soon")


@pytest.mark.usefixtures("short_network")
def test_a_phase_is_compiled_once_and_that_is_no_recompilation():
    torch._dynamo.reset()
    trainer = tiny_trainer(tiny_config(GROUPS, DROP, "compile.mode=default", "compile.backend=aot_eager"))
    step = trainer.step
    batches = trainer.loaders.train.batches_from(0)
    for number in range(2 * STEPS):
        batch = next(batches)
        assert step.is_new(batch) == (number in (0, 3, 5)), number
        if number in (3, 5):
            assert "of the parameters reached `until`" in step.describe_new(batch)
        step(batch)
        if number == STEPS - 1:
            assert step.settled and step.recompilations == 0
            trainer.state.step = 0  # as when a run starts again
    assert step.recompilations == 0
