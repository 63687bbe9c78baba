"""Tests every kind of network in the step of a GPU: compiled, captured, fp16, our batch norm and stem."""

import pytest
import torch

from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import own_stream  # noqa: F401
from tests.tiny import tiny_config, tiny_trainer, train_steps

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("own_stream")]

OURS = [
    ("model.name=resnet20", "model.shortcut=A"),
    ("model.name=resnet20", "model.preactivation=true"),
    ("model.name=resnet20", "model.squeeze_excitation=4"),
    ("model.name=resnet20", "model.blur_pool=true"),
    ("model.name=plain20",),
    ("model.name=wrn16", "model.width=2"),
    ("model.name=davidnet",),
    ("model.name=speednet94", "model.activation=silu"),
    ("model.name=speednet96",),
    ("model.name=resnet50", "model.stem=imagenet"),
    ("model.name=resnet50", "model.groups=32", "model.width=2", "model.shortcut=A"),
]


def losses(*overrides: str) -> list[float]:
    common = (
        "runtime.device=gpu",
        "model.shortcut=B",
        "data.image_size=32",
        "data.loader=synthetic",
        "precision.mode=fp16",
        "optimizer.lr=0.01",
    )
    keys = [
        item
        for item in common
        if not any(other.partition("=")[0] == item.partition("=")[0] for other in overrides)
    ]
    torch._dynamo.reset()
    trainer = tiny_trainer(tiny_config(*keys, *overrides))
    actual = train_steps(trainer, 8)
    assert trainer.step.recompilations == 0
    return actual


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("keys", [*OURS, ("model.name=torchvision/resnet18",)], ids=" ".join)
def test_captured_and_eager_steps_agree(keys: tuple[str, ...]) -> None:
    """Return the first losses, before two runs in half precision differ."""
    fused = ["model.fused_norm=true", "model.fused_stem=true"] if "/" not in keys[0] else []
    eager = losses(*keys, "compile.mode=none")
    captured = losses(*keys, *fused, "compile.mode=reduce-overhead")
    assert torch.tensor(captured).isfinite().all()
    assert captured[:2] == pytest.approx(eager[:2], rel=0.05)


@pytest.mark.usefixtures("process_state")
def test_a_captured_step_drops_other_blocks_each_time() -> None:
    """The images stay the same and the weights nearly: only the draws change the loss."""
    keys = "model.name=resnet20", "model.fused_norm=true", "model.stochastic_depth=0.9", "optimizer.lr=1e-9"
    captured = losses(*keys, "model.zero_init_residual=false", "compile.mode=reduce-overhead")
    assert torch.tensor(captured).isfinite().all()
    assert len(set(captured[4:])) == 4


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", ["davidnet", "resnet18"])
def test_max_pools_may_be_deterministic(name: str) -> None:
    keys = [
        f"model.name={name}",
        "runtime.deterministic=true",
        "compile.mode=none",
        *(["model.stem=imagenet"] * (name == "resnet18")),
    ]
    assert losses(*keys) == losses(*keys)
