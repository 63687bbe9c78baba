"""Tests the replacement of the gradients of convolutions by `convolution_gradients`."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pipeline.training.conv_gradients import SideBySide

BACKWARD = torch.ops.aten.convolution_backward.default
BOTH = torch.ops.quickres.convolution_gradients.default


def traced(layer: nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    """Return the graph of a gradient step of a layer, with the values of its nodes."""
    parameters = dict(layer.named_parameters())

    def gradients(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.detach().requires_grad_(x.requires_grad)
        y = torch.func.functional_call(layer, dict(zip(parameters, weights, strict=True)), (x,))
        return torch.autograd.grad(y.sin().sum(), [*weights, *([x] if x.requires_grad else [])])

    graph = make_fx(gradients, tracing_mode="fake")(x, *parameters.values())
    graph.graph.eliminate_dead_code()
    return graph


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "dilation": 2, "groups": 2},
        {"kernel_size": 1},
    ],
)
def test_the_gradients_stay_the_same(options: dict[str, Any]):
    layer = nn.Conv2d(4, 6, bias=False, **options).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    graph = traced(layer, x)
    graph.recompile()
    expected = graph(x, layer.weight)
    SideBySide()(graph.graph)
    graph.graph.lint()
    graph.recompile()
    targets = [node.target for node in graph.graph.nodes]
    assert BOTH in targets and BACKWARD not in targets
    found = graph(x, layer.weight)
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(found, expected, strict=True))
    (node,) = graph.graph.find_nodes(op="call_function", target=BOTH)
    assert [value.shape for value in node.meta["val"]] == [x.shape, layer.weight.shape]


@pytest.mark.parametrize(
    ("layer", "needs_x"),
    [
        (nn.Conv2d(4, 6, 3), True),  # with a bias
        (nn.Conv2d(4, 6, 3, bias=False), False),  # the first of a network
        (nn.ConvTranspose2d(4, 6, 3, bias=False), True),
    ],
    ids=["bias", "first", "transposed"],
)
def test_other_gradients_are_left_alone(layer: nn.Module, needs_x: bool):
    graph = traced(layer, torch.randn(2, 4, 9, 9, requires_grad=needs_x))
    before = [node.target for node in graph.graph.nodes]
    SideBySide()(graph.graph)
    assert [node.target for node in graph.graph.nodes] == before


def test_two_networks_with_the_pass_share_their_compiled_code():
    """Runs with many seeds in one process compile once."""
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for _ in range(2):
        layer = nn.Conv2d(4, 6, 3)
        layer.compile(options={"post_grad_custom_post_pass": SideBySide()}, fullgraph=True, dynamic=False)
        layer(torch.zeros(2, 4, 9, 9))
    assert graphs["unique_graphs"] == before + 1
