"""Tests that frozen parameters and their batch norms stay as they are, in training and after a restart."""

import pytest
import torch
from torch import nn

from pipeline import api
from pipeline.errors import UserError
from pipeline.models.norm_batches import check_norm_batches
from pipeline.run.checkpoint import map_tensors
from pipeline.training.restart import restart
from tests.tiny import assert_equal, random_batch, tiny_config, tiny_splits, tiny_trainer, train_steps

BACKBONE = "model.freeze=[stem.*, stages.*]"


def moved_names(*keys: str, steps: int = 3) -> set[str]:
    """Return the names of the tensors that steps of training change."""
    trainer = tiny_trainer(tiny_config(*keys))
    state = trainer.state
    before = map_tensors(state.model.state_dict(), torch.Tensor.clone)
    if state.ema is not None:
        assert_equal(dict(state.ema.model.state_dict()), dict(before))
    train_steps(trainer, 1)
    trainer.evaluate_all()  # sets the modes of all modules, and sets them back
    for seed in range(steps):
        trainer.step(random_batch(seed=seed))
    return {name for name, value in state.model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize(
    "keys",
    [(), ("optimizer.name=adamw",), ("ema.decay=0.9", "lookahead.every=2st"), ("compile.mode=default",)],
    ids=str,
)
def test_only_the_head_of_a_frozen_network_moves(keys: tuple[str, ...]):
    keys = (*keys, "compile.backend=aot_eager") if "compile.mode=default" in keys else keys
    assert moved_names(BACKBONE, "model.zero_init_residual=false", *keys) == {"head.weight", "head.bias"}


@pytest.mark.usefixtures("process_state")
def test_a_norm_with_one_trained_parameter_is_in_training():
    moved = moved_names("model.freeze=[stem.1.weight, stages.*]")
    assert moved == {
        *("head.weight", "head.bias", "stem.0.weight", "stem.1.bias"),
        *("stem.1.running_mean", "stem.1.running_var", "stem.1.num_batches_tracked"),
    }


@pytest.mark.usefixtures("process_state")
def test_a_frozen_stage_lets_the_gradient_through():
    moved = moved_names("model.freeze=['stages.1.*']", "model.zero_init_residual=false")
    assert "stem.0.weight" in moved and "stages.2.0.conv1.weight" in moved
    assert not any(name.startswith("stages.1.") for name in moved)


@pytest.mark.usefixtures("process_state")
def test_the_step_is_that_of_torch_with_a_network_in_which_the_same_is_frozen():
    """Freeze by hand what the patterns name, and take one step of torch's own SGD."""
    keys = (
        "optimizer.lr=0.5",
        "optimizer.nesterov=false",
        "optimizer.weight_decay=0.0",
        "schedule.warmup=0st",
    )
    trainer = tiny_trainer(tiny_config("model.freeze=[stem.*, '*.bn1.*']", "schedule.name=cosine", *keys))
    theirs = tiny_trainer(tiny_config("schedule.name=cosine", *keys)).state.model
    for name, module in theirs.named_modules():
        if name == "stem" or name.endswith("bn1"):
            module.requires_grad_(False)
        if name == "stem.1" or name.endswith("bn1"):
            module.eval()
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.5, momentum=0.9)
    batch = random_batch()
    nn.functional.cross_entropy(theirs(batch.images), batch.labels).backward()
    optimizer.step()
    trainer.step(batch)
    ours = trainer.state.model.state_dict()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], value, msg=name)


@pytest.mark.usefixtures("process_state")
def test_a_restarted_trainer_has_the_same_frozen():
    config = tiny_config(BACKBONE)
    trainer = tiny_trainer(config)
    losses = train_steps(trainer, 2)
    restart(trainer, config, tiny_splits(config), trainer.loaders)
    assert train_steps(trainer, 2) == losses


@pytest.mark.usefixtures("process_state")
def test_the_norms_of_a_network_that_was_in_evaluation_mode_stay_frozen():
    config = tiny_config(BACKBONE)
    splits = tiny_splits(config)
    model = api.build_model(config, splits).eval()
    mean = model.get_buffer("stem.1.running_mean").clone()
    api.fit(config, model, api.build_loaders(config, splits), quiet=True)
    assert torch.equal(model.get_buffer("stem.1.running_mean"), mean)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[stem.*, layer4.*]", ("model.freeze", "'layer4.*'", "stem.0.weight", "head.bias", "'stem.*'")),
        ("['*']", ("model.freeze", "all parameters", "head")),
        ("stem.*", ("model.freeze", "list")),
        ("['']", ("model.freeze",)),
    ],
)
def test_a_pattern_that_cannot_be_is_named(value: str, words: tuple[str, ...]):
    with pytest.raises(UserError) as error:
        tiny_trainer(tiny_config(f"model.freeze={value}"))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


def test_a_batch_of_one_image_is_enough_where_all_norms_are_frozen():
    keys = ("data.dataset=synthetic", "data.batch_size=1", "model.name=resnet18", "data.image_size=8")
    with pytest.raises(UserError, match="micro-batches of one image"):
        check_norm_batches(tiny_config(*keys), 1)
    check_norm_batches(tiny_config(*keys, BACKBONE), 1)
