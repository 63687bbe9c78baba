"""Check the registration of operators, and capture them."""

from collections.abc import Callable
from typing import Any

import torch


def assert_registered(operator: Any, arguments: tuple[Any, ...]) -> None:
    """Assert that an operator passes PyTorch's own checks.

    They check its schema, mutated arguments, shapes without data, autograd, and tracing with static
    and dynamic shapes.
    """
    results = torch.library.opcheck(operator, arguments)
    assert len(results) >= 4 and set(results.values()) == {"SUCCESS"}, results


def capture(step: Callable[[], list[torch.Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """Run a step once, which compiles its kernels, then capture it; return the graph and what it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph, captured
