"""On a GPU, test-time views of images on the device are captured in a CUDA graph, and count the same."""

from functools import partial

import pytest
import torch
from torch import nn

from pipeline.config import Views
from pipeline.training.views import count_correct_of_views, predict_views
from tests.gpus import NEEDS_GPU

pytestmark = [*NEEDS_GPU, pytest.mark.usefixtures("process_state")]
NUM_IMAGES, BATCH = 1000, 256


def make_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 15 * 15, 10)]
    return nn.Sequential(*layers).cuda().half().to(memory_format=torch.channels_last).eval()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_captured_evaluation_counts_what_the_eager_one_counts(share: float) -> None:
    """A capture forbids every wait of the host. A replay sees the images that are there then."""
    network, views = make_network(), Views("mirror_shift", share)
    images = torch.randn(NUM_IMAGES, 3, 32, 32, device="cuda", dtype=torch.half)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (NUM_IMAGES,), device="cuda")
    evaluate = partial(count_correct_of_views, network, images, labels, BATCH, views)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        evaluate()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        counts = evaluate()
    for _ in range(2):
        images.normal_()
        graph.replay()
        assert counts.tolist() == evaluate().tolist()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_all_views_keep_the_memory_format(share: float) -> None:
    """The network is called with full batches in channels_last only, so that cuDNN needs no other kernels."""
    network, seen = make_network(), set()
    images = torch.randn(NUM_IMAGES, 3, 32, 32, device="cuda", dtype=torch.half)

    def forward(some: torch.Tensor) -> torch.Tensor:
        seen.add((some.shape, some.is_contiguous(memory_format=torch.channels_last)))
        return network(some)

    images = images.contiguous(memory_format=torch.channels_last)
    predict_views(forward, images, BATCH, Views("mirror_shift", share))
    assert seen == {((BATCH, 3, 32, 32), True)}
