"""On a GPU, a network that is replayed in evaluations gives what PyTorch's own functions give."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import Views
from pipeline.data import load_splits
from pipeline.data.loaders.fused import FusedLoader
from pipeline.distributed.processes import connect
from pipeline.training import second_pass
from pipeline.training.build import set_backends
from pipeline.training.eval_network import EvalNetwork
from pipeline.training.evaluate import _see_once, evaluate
from pipeline.training.trainer import Trainer
from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import no_synchronisation, own_stream, small_config  # noqa: F401

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("process_state", "own_stream")]
NETWORKS = ["resnet20", "resnet18", "speednet94", "speednet96"]


def build(name: str, *keys: str) -> Trainer:
    config = small_config(
        f"model.name={name}",
        "model.fused_norm=true",
        "model.fused_stem=true",
        "data.loader=fused",
        "data.eval_batch_size=96",
        "compile.mode=reduce-overhead",
        "runtime.tf32=false",  # our kernels multiply float32 as it is
        "evaluation.views=mirror_shift",
        "evaluation.views_share=0.25",
        *keys,
    )
    set_backends(config)
    return Trainer.build(config, load_splits(config.data, 0), connect(config))


def randomise(model: nn.Module) -> None:
    """Change weights and running statistics in their memory."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", ["fp32", "fp16", "bf16"])
@torch.no_grad()
def test_the_logits_are_those_of_pytorch(name: str, mode: str) -> None:
    trainer = build(name, f"precision.mode={mode}")
    model, precision = trainer.state.model.eval(), trainer.state.precision
    network = EvalNetwork(model, precision, capture=True)
    tolerance = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}[mode]
    for size in (96, 96, 40, 96, 40):
        randomise(model)
        images = next(trainer.loaders.train.batches_from(0)).images
        images = images.repeat(2, 1, 1, 1)[:size].contiguous(memory_format=torch.channels_last)
        logits = network(images)
        kept = logits.clone()
        with precision.autocast():
            expected = model.forward(images).float()
        network(images.flip(0))
        assert torch.equal(logits, kept), "later calls must not change the logits"
        largest = expected.abs().max().item()
        torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * largest)
    assert network.num_captured == 2


@pytest.mark.parametrize("keys", [(), ("ema.decay=0.9",)], ids=["weights", "average"])
def test_the_counts_of_a_run_are_those_of_pytorch(keys: tuple[str, ...]) -> None:
    trainer = build("speednet94", "precision.mode=fp32", "duration=12st", *keys)
    trainer.evaluate_weights(trainer.loaders.test)  # captured before the step
    result = trainer.fit()
    assert trainer.step.recompilations == 0
    assert [network.num_captured for network in trainer.evaluator._networks.values()] == [2] * (1 + len(keys))
    state, views = trainer.state, trainer.config.evaluation.test_views
    models: list[tuple[Any, nn.Module]] = [(result, state.model)]
    if state.ema is not None:
        models.append((result.ema, state.ema.model))
    for found, model in models:
        plain = evaluate(model, trainer.loaders.test, state.precision, trainer.processes.device, views)
        assert abs(found.correct - plain.correct) <= 2 and found.seen == plain.seen
        assert found.correct_views is not None and plain.correct_views is not None
        assert abs(found.correct_views - plain.correct_views) <= 2
        assert found.loss == pytest.approx(plain.loss, rel=1e-3)


@pytest.mark.parametrize(
    "keys",
    [(), ("compile.scope=blocks",), ("compile.mode=graph",), ("optimizer.name=muon", "optimizer.lr=0.02")],
    ids=["network", "blocks", "graph", "muon"],
)
def test_steps_after_an_evaluation_are_those_without_one(keys: tuple[str, ...]) -> None:
    """Captured steps and evaluations share memory. No evaluation is compiled."""
    weights = []
    for evaluates in (False, True):
        torch._dynamo.reset()
        trainer = build("resnet20", "precision.mode=fp32", "duration=12st", *keys)
        trainer.plan = replace(trainer.plan, eval_every=2 if evaluates else 12, log_every=12)
        trainer.fit()
        assert trainer.step.settled and trainer.step.recompilations == 0
        weights.append([parameter.detach().clone() for parameter in trainer.state.model.parameters()])
    for without, with_evaluations in zip(*weights, strict=True):
        torch.testing.assert_close(with_evaluations, without, rtol=1e-4, atol=1e-5)


def test_the_host_does_not_wait() -> None:
    trainer = build("speednet94", "precision.mode=fp16")
    views = Views("mirror_shift", 0.25)
    trainer.evaluate_weights(trainer.loaders.test)
    network, loader = trainer.evaluator.network("weights", trainer.state.model), trainer.loaders.test
    assert isinstance(loader, FusedLoader)
    with no_synchronisation(), torch.no_grad():
        seen_once = _see_once(network, loader, trainer.processes.device, views, None, keep_logits=True)
        second_pass.count_on_device(network, loader, views, seen_once)


@pytest.mark.parametrize("mode", ["graph", "reduce-overhead"])
def test_images_may_begin_anywhere_in_memory(mode: str) -> None:
    """cuDNN keeps its choices by the alignment of the memory, and cannot choose in a capture."""
    keys = "model.fused_stem=false", "runtime.deterministic=false", "runtime.cudnn_benchmark=true"
    trainer = build("resnet20", "precision.mode=fp16", f"compile.mode={mode}", *keys)
    batch = next(trainer.loaders.train.batches_from(0))
    images = batch.images.new_empty(batch.images.numel() + 1)[1:]
    images = images.as_strided(batch.images.shape, batch.images.stride(), 1).copy_(batch.images)
    assert images.data_ptr() % 32
    losses = [trainer.step(replace(batch, images=images)).loss.item() for _ in range(6)]
    assert trainer.step.settled and math.isfinite(sum(losses))
    model = trainer.state.model.eval()
    network = EvalNetwork(model, trainer.state.precision, capture=True)
    for _ in range(2):
        logits = network(images)
        torch.testing.assert_close(logits, network(batch.images), rtol=0, atol=0.1)
    assert network.num_captured == 1
