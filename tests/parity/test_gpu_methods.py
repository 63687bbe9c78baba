"""On a GPU, every method trains the same captured in a CUDA graph and eagerly."""

import pytest
import torch

from pipeline.config import Config
from pipeline.data import Batch
from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import no_synchronisation, own_stream, small_config, start, train  # noqa: F401
from tests.parity.tolerances import assert_parity

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("process_state", "own_stream")]

METHODS = {
    "sgd": (),
    "ema": ("ema.decay=0.9",),
    "adamw": ("optimizer.name=adamw", "optimizer.lr=0.01"),
    "muon": ("optimizer.name=muon", "optimizer.lr=0.02", "optimizer.sgd_lr_ratio=2.0"),
    "accumulation": ("optimizer.accumulate=4",),
    "mixup": ("augment.mix=mixup",),
    "cutmix": ("augment.mix=cutmix", "augment.mix_probability=0.5"),
    "ricap": ("augment.mix=ricap", "augment.mix_alpha=0.3"),
    "mixup or cutmix": ("augment.mix=mixup_or_cutmix", "augment.mix_alpha=0.2", "loss.name=bce"),
    "ema at intervals": ("ema.decay=0.9", "ema.every=4st"),
    "fine-tuning": (
        "model.freeze=[stem.*,stages.0.*]",
        "optimizer.layer_decay=0.7",
        "optimizer.groups=[{match: head.*, lr_ratio: 3}]",
    ),
    "clip": ("optimizer.clip_norm=0.5",),
    "together": (
        "optimizer.name=muon",
        "optimizer.lr=0.02",
        "ema.decay=0.9",
        "optimizer.clip_norm=1.0",
        "optimizer.accumulate=2",
        "augment.mix=cutmix",
    ),
}


def _train(config: Config) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the losses, and the weights and their moving average at the end."""
    step, loader = start(config)
    losses, state = train(step, loader), step._state
    models = {"weights": state.model} | ({"ema": state.ema.model} if state.ema is not None else {})
    return losses, {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, model in models.items()
        for key, value in model.named_parameters()
    }


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_captured_steps_train_like_the_compiled_ones(name: str, mode: str) -> None:
    """Losses, weights and averages agree. A host sync would be an error, because a capture forbids it."""
    keys = (f"precision.mode={mode}", *METHODS[name])
    losses, weights = _train(small_config("compile.mode=default", *keys))
    captured, captured_weights = _train(small_config("compile.mode=reduce-overhead", *keys))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[mode]
    assert_parity(captured, losses, "20 losses, captured", dtype)
    assert captured_weights.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(
            captured_weights[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("mode", ["none", "reduce-overhead"])
@pytest.mark.parametrize("name", METHODS)
def test_an_overflow_skips_exactly_that_update(name: str, mode: str) -> None:
    """Weights, optimizer state and moving average stay; the statistics of batch norm have seen the images."""
    step, loader = start(
        small_config(
            "precision.mode=fp16", f"compile.mode={mode}", "precision.init_scale=1024.0", *METHODS[name]
        )
    )
    state, stream = step._state, iter(loader)

    def everything() -> list[torch.Tensor]:
        held = [value for entry in state.optimizer.state.values() for value in entry.values()]
        average = list(state.ema.model.parameters()) if state.ema is not None else []
        return [value.detach().clone() for value in (*state.model.parameters(), *held, *average)]

    for _ in range(6):
        step(next(stream))
    before = everything()
    output = step(_poisoned(next(stream)))
    assert output.found_inf.item() == 1
    assert all(torch.equal(new, old) for new, old in zip(everything(), before, strict=True))


def _poisoned(batch: Batch) -> Batch:
    return Batch(torch.full_like(batch.images, float("inf")), batch.labels, batch.valid, batch.indices)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_nothing(name: str) -> None:
    """The host waits neither in an eager step nor in one that copies its batch into the captured step."""
    step, loader = start(
        small_config(
            "precision.mode=fp16", "compile.mode=reduce-overhead", "data.loader=synthetic", *METHODS[name]
        )
    )
    stream = iter(loader)
    step(next(stream))
    step(next(stream))
    with no_synchronisation():
        step(next(stream))  # the last eager one
    step(next(stream))  # captures
    with no_synchronisation():
        output = step(next(stream))
    assert step._state.step == 5 and torch.isfinite(output.loss)


def test_what_dropout_draws_from_is_saved() -> None:
    step, _ = start(small_config("compile.mode=none"))
    torch.rand(5, device="cuda")
    saved = step._state.state_dict()
    drawn = torch.rand(5, device="cuda")
    step._state.load_state_dict(saved)
    assert torch.equal(torch.rand(5, device="cuda"), drawn)
