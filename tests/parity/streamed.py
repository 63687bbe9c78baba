"""Builds loaders of streamed folders for the parity tests, and compares their pixels in grey levels."""

from pathlib import Path

import torch

from benchmarks.measure.options import merge
from pipeline.config import Config, load_config
from pipeline.data import Loaders, Shard, build_loaders, load_splits
from tests.parity.tolerances import GREY_LEVELS

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.6], [0.25, 0.2, 0.3]


def config_of(root: Path, *overrides: str) -> Config:
    defaults = [
        "data.dataset=folder",
        f"data.root={root}",
        f"data.mean={MEAN}",
        f"data.std={STD}",
        "data.image_size=48",
        "data.batch_size=12",
        "data.eval_batch_size=12",
        "data.num_threads=1",
        "augment.cutout=16",
        "augment.progressive=[[0ep, 32], [5st, 48]]",
        "precision.mode=fp32",
        "seed=3",
        "duration=3ep",
    ]
    return load_config(overrides=merge(defaults, overrides))


def loaders(root: Path, *overrides: str, shard: Shard | None = None, device: torch.device = CPU) -> Loaders:
    config = config_of(root, *overrides)
    return build_loaders(config, load_splits(config.data, config.seed), device, shard)


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Convert normalised images back to grey levels."""
    return images.float() * 255 * torch.tensor(STD)[:, None, None] + 255 * torch.tensor(MEAN)[:, None, None]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, backend: str) -> None:
    """Check that the largest and the mean difference, in grey levels, are within the tolerances."""
    difference = (grey_levels(actual) - grey_levels(expected)).abs()
    most, mean, _ = GREY_LEVELS[backend]
    assert difference.max() <= most and difference.mean() <= mean, (
        f"{difference.max():.2f} at most, {difference.mean():.3f} on average"
    )
