"""Check the registration of operators, and capture them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def assert_registered(operator: Any, arguments: tuple[Any, ...]) -> None:
    """Assert that an operator passes PyTorch's own checks.

    They check its schema, mutated arguments, shapes without data, autograd, and tracing with static
    and dynamic shapes.
    """
    results = torch.library.opcheck(operator, arguments)
    assert len(results) >= 4 and set(results.values()) == {"SUCCESS"}, results


def differentiate(
    functions: tuple[Callable[..., torch.Tensor], Callable[..., tuple[torch.Tensor, torch.Tensor]]],
    arguments: Sequence[Any],
    leaves: Mapping[str, torch.Tensor],
    gradients: Sequence[torch.Tensor],
    transform: Callable[[Any], Any] = lambda function: function,
) -> dict[str, torch.Tensor]:
    """Return `y` of a differentiable function, and the gradients by its leaves: `dx` by `x`.

    Args:
        functions: one that returns y, and one that returns it twice.
        arguments: of both.
        leaves: among the arguments, by name.
        gradients: of the uses of y, one or two, which decides between the functions.
        transform: may compile the function.
    """
    once, twice = functions

    def used_once(*arguments: Any) -> list[torch.Tensor]:
        return [1 * once(*arguments)]

    def used_twice(*arguments: Any) -> list[torch.Tensor]:
        first, second = twice(*arguments)
        return [1 * first, 1 * second]

    outputs = transform(used_twice if len(gradients) == 2 else used_once)(*arguments)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    by_leaf = torch.autograd.grad(outputs, list(leaves.values()), list(gradients))
    named = {f"d{name}": gradient for name, gradient in zip(leaves, by_leaf, strict=True)}
    return {"y": outputs[0].detach()} | named


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
