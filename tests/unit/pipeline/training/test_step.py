"""The training step: precisions, overflow, clipping, smoothing, compiling."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.config import CompileConfig
from pipeline.data import Batch
from pipeline.training import step as step_module
from pipeline.training.build import compile_in_place
from pipeline.training.evaluate import evaluate
from pipeline.training.trainer import Trainer
from tests.parity.tolerances import assert_parity
from tests.tiny import in_precision, random_batch, start, train_steps

pytestmark = pytest.mark.usefixtures("process_state")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.state.model.parameters()]


def momentum(trainer: Trainer) -> list[torch.Tensor]:
    return [state["momentum_buffer"].clone() for state in trainer.state.optimizer.state.values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_step_is_the_textbook_s():
    """Forward, smoothed loss, gradient and Nesterov's update with weight decay, written out by hand."""
    trainer = start("loss.label_smoothing=0.1", "optimizer.weight_decay=0.01", "schedule.warmup=0st")
    by_hand = copy.deepcopy(trainer.state.model)
    batch = random_batch()
    output = trainer.step(batch)
    logits = by_hand(batch.images)
    loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    loss.backward()
    assert torch.equal(output.loss, loss.detach())
    assert output.correct.item() == (logits.argmax(1) == batch.labels).sum().item()
    assert output.found_inf.item() == 0
    for trained, parameter in zip(trainer.state.model.parameters(), by_hand.parameters(), strict=True):
        assert parameter.grad is not None
        gradient = parameter.grad + 0.01 * parameter.detach()
        torch.testing.assert_close(
            trained.detach(), parameter.detach() - 0.1 * (gradient + 0.9 * gradient), rtol=1e-5, atol=1e-7
        )
        assert trained.grad is None


def test_each_step_has_its_own_rate():
    trainer = start()
    for step in range(7):
        trainer.step(random_batch())
        assert trainer.state.lr.item() == pytest.approx(trainer.plan.lr_at(step))
        assert trainer.state.step == step + 1


@pytest.mark.parametrize("mode", DTYPES)
def test_every_precision_learns_with_weights_in_float32(mode: str):
    trainer = start(*in_precision(mode))
    losses = train_steps(trainer, 12)
    assert all(torch.isfinite(torch.tensor(losses))) and sum(losses[-3:]) < sum(losses[:3])
    assert {tensor.dtype for tensor in parameters(trainer) + momentum(trainer)} == {torch.float32}
    assert next(iter(trainer.loaders.train)).images.dtype == (
        torch.float32 if mode == "fp32" else torch.float16
    )


@pytest.mark.parametrize("mode", ["bf16", "fp16"])
def test_half_precision_stays_near_single(mode: str):
    """Not equal: that the activations are rounded to 8 or 11 bits shows, and nothing else."""
    single, half = (train_steps(start(f"precision.mode={name}"), 3) for name in ("fp32", mode))
    assert half != single
    torch.testing.assert_close(torch.tensor(half), torch.tensor(single), rtol=2e-2, atol=0)


def overflow(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """A step in which one gradient is infinite; the flag that it reports."""
    hook = trainer.state.model.get_parameter("head.bias").register_hook(
        lambda gradient: torch.full_like(gradient, torch.inf)
    )
    output = trainer.step(batch)
    hook.remove()
    return output.found_inf


@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_an_overflow_skips_exactly_that_update(clip: str):
    trainer = start("precision.mode=fp16", "precision.init_scale=1024.0", f"optimizer.clip_norm={clip}")
    state, batch = trainer.state, random_batch()
    for _ in range(2):
        assert trainer.step(batch).found_inf.item() == 0
    weights, buffers = parameters(trainer), momentum(trainer)
    sums = state.totals.values.clone()
    assert overflow(trainer, batch).item() == 1
    assert same(weights, parameters(trainer)) and same(buffers, momentum(trainer))
    assert state.precision.loss_scale() == 512
    assert state.step == 3  # the schedule goes on
    assert state.totals.values.tolist() == [*sums[:3].tolist(), 1, 1]  # counted, and kept out of the means
    assert overflow(trainer, batch).item() == 1
    assert state.totals.values[3:].tolist() == [2, 2]
    assert trainer.step(batch).found_inf.item() == 0
    assert not same(weights, parameters(trainer))
    assert state.totals.values[3:].tolist() == [2, 0]
    assert state.precision.loss_scale() == 256


def test_the_first_update_may_be_the_skipped_one():
    trainer = start("precision.mode=fp16")
    weights = parameters(trainer)
    assert overflow(trainer, random_batch()).item() == 1
    assert same(weights, parameters(trainer))
    assert not any(buffer.any() for buffer in momentum(trainer))
    assert all(torch.isfinite(torch.tensor(train_steps(trainer, 3))))


def test_the_scale_grows_after_the_interval():
    trainer = start("precision.mode=fp16", "precision.init_scale=8.0", "precision.growth_interval=3")
    train_steps(trainer, 2)
    assert trainer.state.precision.loss_scale() == 8
    train_steps(trainer, 1)
    assert trainer.state.precision.loss_scale() == 16


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
def test_the_clipped_gradient_is_the_unscaled_one(mode: str):
    """At rate 1 without momentum the update is the gradient. Its norm is the limit at any loss scale."""
    keys = [
        "optimizer.momentum=0.0",
        "optimizer.nesterov=false",
        "optimizer.weight_decay=0.0",
        "optimizer.lr=1.0",
        "schedule.warmup=0st",
    ]
    trainer = start(f"precision.mode={mode}", "optimizer.clip_norm=0.05", *keys)
    before = parameters(trainer)
    trainer.step(random_batch())
    moved = torch.sqrt(
        sum(
            (
                (new - old).double().square().sum()
                for new, old in zip(parameters(trainer), before, strict=True)
            ),
            torch.zeros(()),
        )
    )
    assert moved.item() == pytest.approx(0.05, rel=1e-3)


def test_totals_are_sums_over_images():
    trainer = start()
    outputs = [trainer.step(random_batch(seed=seed)) for seed in range(3)]
    loss, correct, images, skipped, in_a_row = trainer.state.totals.values.tolist()
    assert loss == pytest.approx(8 * sum(output.loss.item() for output in outputs))
    assert correct == sum(output.correct.item() for output in outputs)
    assert (images, skipped, in_a_row) == (24, 0, 0)
    trainer.state.totals.start_window()
    assert trainer.state.totals.values.tolist() == [0] * 5


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(mode: str, count: int):
    """Written out by hand: batch norm sees one micro-batch; the update of all is clipped and scaled once."""
    keys = (*in_precision(mode), "optimizer.clip_norm=0.5", "schedule.warmup=0st")
    trainer = start(f"optimizer.accumulate={count}", *keys)
    by_hand, precision = copy.deepcopy(trainer.state.model), trainer.state.precision
    batch = random_batch()
    output = trainer.step(batch)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    losses, correct = [], 0
    for images, labels in zip(batch.images.split(8 // count), batch.labels.split(8 // count), strict=True):
        with precision.autocast():
            logits = by_hand(images)
        loss = F.cross_entropy(logits.float(), labels)
        (loss / count).backward()
        losses.append(loss.item())
        correct += (logits.argmax(1) == labels).sum().item()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
    optimizer.step()
    assert output.loss.item() == pytest.approx(sum(losses) / count, rel=1e-6 if mode == "fp32" else 1e-3)
    assert output.correct.item() == correct
    assert trainer.state.totals.values[2:].tolist() == [8, 0, 0]
    rtol, atol = (1e-5, 1e-6) if mode == "fp32" else (1e-3, 1e-4)
    for (name, trained), parameter in zip(
        trainer.state.model.named_parameters(), by_hand.parameters(), strict=True
    ):
        torch.testing.assert_close(
            trained.detach(),
            parameter.detach(),
            rtol=rtol,
            atol=atol,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    for key, value in by_hand.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(trainer.state.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_an_overflow_in_one_micro_batch_skips_the_update():
    trainer = start("optimizer.accumulate=4", "precision.mode=fp16", "precision.init_scale=1024.0")
    weights, calls = parameters(trainer), [0]

    def once(gradient: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return torch.full_like(gradient, torch.inf) if calls[0] == 2 else gradient

    hook = trainer.state.model.get_parameter("head.bias").register_hook(once)
    assert trainer.step(random_batch()).found_inf.item() == 1
    hook.remove()
    assert calls == [4] and same(weights, parameters(trainer))
    assert trainer.state.totals.values[3:].tolist() == [1, 1]
    assert trainer.step(random_batch()).found_inf.item() == 0


# --- compiled -----------------------------------------------------------------------------------------------


def compare_with_eager(*overrides: str, mode: str = "fp32") -> None:
    """Train compiled and eagerly. Evaluations in between have other shapes, and must not recompile.

    By inductor: see tests/integration/test_no_stray_files.py.
    """
    torch._dynamo.reset()
    eager = start(f"precision.mode={mode}")
    compiled = start(f"precision.mode={mode}", "compile.mode=default", *overrides)
    keys = list(compiled.state.model.state_dict())
    assert keys == list(eager.state.model.state_dict())
    losses: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(2):
        for number, trainer in enumerate((eager, compiled)):
            losses[number] += train_steps(trainer, 10)
            evaluate(trainer.state.model, trainer.loaders.test, trainer.state.precision, torch.device("cpu"))
            assert trainer.state.model.training
    assert_parity(torch.tensor(losses[1]), torch.tensor(losses[0]), "20 losses, compiled", DTYPES[mode])
    assert compiled.step.settled and compiled.step.recompilations == 0


@pytest.mark.usefixtures("short_network")
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_compiled_trains_like_eager(mode: str):
    compare_with_eager("compile.backend=aot_eager", mode=mode)


@pytest.mark.slow
def test_an_operator_that_is_first_met_deep_in_the_network_compiles_at_once():
    """In torch 2.11 an expression doubled with each residual block: 22 took minutes, 30 would take hours."""

    class Deep(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for _ in range(30):
                images = add(images, images)
            return last(images, images)

    add, last = (
        torch.library.custom_op(
            f"deep::{name}", lambda x, y: x + y, mutates_args=(), schema="(Tensor x, Tensor y) -> Tensor"
        )
        for name in ("add", "last")
    )
    for operator in (add, last):
        operator.register_fake(lambda x, y: torch.empty_like(x))
    model = Deep()
    compile_in_place(model, CompileConfig(mode="default"), torch.device("cpu"))
    assert torch.equal(model(torch.ones(2)), torch.full((2,), 2.0**31))


@pytest.mark.usefixtures("short_network")
def test_a_changed_shape_is_counted_as_a_recompilation():
    torch._dynamo.reset()
    trainer = start("compile.mode=default", "compile.backend=aot_eager")
    assert not trainer.step.settled and trainer.step.recompilations == 0
    for _ in range(3):
        trainer.step(random_batch())
    assert trainer.step.settled and trainer.step.recompilations == 0
    trainer.step(random_batch(size=4))
    assert trainer.step.recompilations == 1


@pytest.mark.usefixtures("short_network")
def test_images_of_another_size_are_compiled_once_and_that_is_no_recompilation():
    torch._dynamo.reset()
    trainer = start("compile.mode=default", "compile.backend=aot_eager")
    for side, new in ((8, True), (12, True), (8, False)):
        batch = random_batch(image_size=side)
        assert trainer.step.is_new(batch) == new
        for _ in range(3):
            trainer.step(batch)
        assert trainer.step.settled and trainer.step.recompilations == 0


def test_more_sizes_than_torch_compiles_by_default(monkeypatch: pytest.MonkeyPatch):
    """Its limit of eight graphs of one function ended the run at the ninth; that of all is lowered here."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch._dynamo.config, "accumulated_recompile_limit", 8)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    compile_in_place(model, CompileConfig(mode="default", backend="aot_eager"), torch.device("cpu"))
    assert [model(torch.zeros(1, 3, side, side)).shape[2] for side in range(8, 18)] == list(range(6, 16))


@pytest.mark.usefixtures("short_network")
def test_blocks_compiled_by_themselves_are_not_compiled_again_for_evaluation():
    torch._dynamo.reset()
    trainer = start("compile.mode=default", "compile.backend=aot_eager", "compile.scope=blocks")
    model, loader = trainer.state.model, trainer.loaders.test
    for _ in range(3):
        trainer.step(random_batch())
    found = [
        trainer.evaluate_weights(loader),
        evaluate(model, loader, trainer.state.precision, torch.device("cpu")),
    ]
    assert trainer.step.settled and trainer.step.recompilations == 0
    trainer.step(random_batch())
    assert trainer.step.recompilations == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "training runs the compiled blocks"
    assert [result.correct for result in found] == [found[0].correct] * 2


def test_eager_steps_read_memory_as_aligned_as_the_captured_one_s(monkeypatch: pytest.MonkeyPatch):
    """Images may begin anywhere. cuDNN chooses algorithms by alignment, which it cannot do in a capture."""
    trainer = start()
    addresses: list[int] = []

    def train_step(state: Any, options: Any, images: torch.Tensor, labels: torch.Tensor) -> None:
        addresses.append(images.data_ptr() % 32)
        assert torch.equal(images, batch.images) and images.stride() == batch.images.stride()

    monkeypatch.setattr(step_module, "train_step", train_step)
    batch = random_batch()
    shifted = torch.empty(batch.images.numel() + 1)[1:].as_strided(batch.images.shape, batch.images.stride())
    batch = dataclasses.replace(batch, images=shifted.copy_(batch.images))
    assert batch.images.data_ptr() % 32
    for captures in (True, False):
        step = step_module.Step(trainer.config, trainer.state, lambda _: [0.1], capture=captures)
        step(batch)
    assert addresses == [0, batch.images.data_ptr() % 32]
