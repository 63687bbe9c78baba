"""A network of evaluations: what it copies, keeps and captures. On a CPU a graph is a function."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import UnscaledPrecision
from pipeline.training import eval_network
from pipeline.training import evaluator as evaluator_module
from pipeline.training.eval_network import EvalNetwork
from pipeline.training.precision import Precision
from tests.tiny import tiny_config, tiny_trainer

PRECISION = Precision(UnscaledPrecision(mode="bf16"), torch.device("cpu"))


@dataclass
class _Graph:
    """Computes again into the same memory, as a captured pass does."""

    replay: Callable[[], Any]


def capture_pass(network: EvalNetwork, images: torch.Tensor) -> Any:
    static = images.clone()
    logits = network._forward(static)
    graph: Any = _Graph(lambda: logits.copy_(network._forward(static)))
    return eval_network._Captured(graph, static, logits)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)).eval()


@torch.no_grad()
def expected(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with PRECISION.autocast():
        return model(images).float()


@pytest.mark.parametrize("capture", [False, True])
@torch.no_grad()
def test_logits_of_the_weights_at_each_call(
    model: nn.Module, capture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvalNetwork, "_capture_pass", capture_pass)
    network = EvalNetwork(model, PRECISION, capture)
    earlier: list[tuple[torch.Tensor, torch.Tensor]] = []
    for size in (4, 4, 3, 4, 3):
        for tensor in (*model.parameters(), model[1].running_mean):  # type: ignore[index]
            tensor.normal_()
        images = torch.randn(size, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        logits = network(images)
        assert logits.dtype is torch.float32 and not logits.requires_grad
        torch.testing.assert_close(logits, expected(model, images), rtol=0, atol=0)
        earlier.append((logits, logits.clone()))
    assert all(torch.equal(*pair) for pair in earlier), "a later call changed earlier logits"
    assert network.num_captured == (2 if capture else 0)


def test_the_graphs_of_a_network_share_memory(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one takes that of the training step."""
    pools: list[object] = []

    class Capturing:
        def __init__(self, graph: Any, pool: object, **_: Any):
            pools.append(pool)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    class Graph:
        def pool(self) -> str:
            return "its own"

    monkeypatch.setattr(torch.cuda, "graph", Capturing)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    network = EvalNetwork(model, PRECISION, True, memory=lambda: "that of the step")
    for size in (4, 3):
        network(torch.randn(size, 3, 6, 6))
    assert pools == ["that of the step", "its own"]


def test_a_loader_of_ever_new_shapes_captures_no_more_than_some(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EvalNetwork, "_capture_pass", capture_pass)
    network = EvalNetwork(model, PRECISION, True)
    for size in (*range(1, 12), 1, 11):
        images = torch.randn(size, 3, 6, 6)
        torch.testing.assert_close(network(images), expected(model, images), rtol=0, atol=0)
    assert network.num_captured == eval_network._MOST_SHAPES == 8


@pytest.mark.usefixtures("process_state")
def test_the_evaluation_of_a_caller_s_own_network_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for the device there, which ends a capture with an error."""
    monkeypatch.setattr(evaluator_module, "captures", lambda *_: True)
    trainer = tiny_trainer(tiny_config())
    evaluator, model = trainer.evaluator, trainer.state.model
    assert evaluator.builds_networks and evaluator.network("ours", model)._capture
    evaluator.builds_networks = False
    assert evaluator.network("ours, by pipeline.api", model)._capture
    assert not evaluator.network("the caller's", nn.Sequential(nn.Linear(2, 2)))._capture


def test_the_first_passes_are_timed_apart_from_their_captures(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture_slowly(self: EvalNetwork, images: torch.Tensor) -> Any:
        time.sleep(0.05)
        return capture_pass(self, images)

    monkeypatch.setattr(EvalNetwork, "_capture_pass", capture_slowly)
    network = EvalNetwork(model, PRECISION, True)
    for _ in range(2):
        network(torch.randn(4, 3, 6, 6))
    assert network.capture_s >= 0.05 > network.first_pass_s > 0
    taken = network.capture_s, network.first_pass_s
    network(torch.randn(4, 3, 6, 6))
    assert taken == (network.capture_s, network.first_pass_s), "a replay counted as a first pass"
