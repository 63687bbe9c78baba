"""The two gradients of a convolution, as branches of a CUDA graph."""

import pytest
import torch

from pipeline.training.conv_gradients import convolution_gradients
from tests.gpus import NEEDS_GPU
from tests.parity.on_gpu import own_stream  # noqa: F401

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("own_stream")]


def _draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda").half().contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
def test_branches_give_the_same_gradients(stride: int):
    x, weight = _draw(256, 64, 32, 32), _draw(128, 64, 3, 3)
    gradient = _draw(256, 128, 32 // stride, 32 // stride)
    arguments = x, weight, [stride, stride], [1, 1], [1, 1], 1
    expected = convolution_gradients(gradient, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        # a chain, so that memory of one call is used again by the next one
        first = convolution_gradients(gradient, *arguments)
        repeated = convolution_gradients(gradient + 0 * first[0].mean(), *arguments)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    for found, other, one in zip(first, repeated, expected, strict=True):
        assert torch.equal(found, one) and torch.equal(other, one)
        assert found.stride() == one.stride()
