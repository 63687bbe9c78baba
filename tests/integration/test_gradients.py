"""Checks the mean of the gradients over the processes."""

from pathlib import Path

import pytest
import torch

from tests.gpus import needs_gpus
from tests.integration import scenes
from tests.integration.ranks import ranks


@pytest.mark.slow
def test_every_parameter_has_the_mean_over_the_processes(tmp_path: Path):
    assert_means(tmp_path, 3)


@needs_gpus(2)
def test_on_two_gpus(tmp_path: Path):
    assert_means(tmp_path, 2, "runtime.device=gpu")


def assert_means(folder: Path, world_size: int, *overrides: str) -> None:
    with ranks(folder, world_size, scenes.average_gradients, folder, *overrides) as run:
        assert run.wait() == [0] * world_size, run.errors
    results = [torch.load(folder / f"rank-{rank}.pt") for rank in range(world_size)]
    for number, gradients in enumerate(results[0]):
        for place, gradient in enumerate(gradients):
            noise = [scenes.noise(gradient, rank, number) for rank in range(world_size)]
            passes = 2 if place % 2 == 0 else 1  # backward passes that give this parameter a gradient
            torch.testing.assert_close(gradient, passes * torch.stack(noise).mean(0))
            assert all(torch.equal(other[number][place], gradient) for other in results)
