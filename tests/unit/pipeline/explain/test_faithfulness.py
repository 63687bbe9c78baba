"""Deletion and insertion tell a map that shows what a network looks at from one that does not."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import api
from pipeline.explain import Explained
from pipeline.explain.cam import Explanations
from pipeline.explain.faithfulness import _ranks, score_maps
from pipeline.inference.trained_model import Trained
from tests.tiny import tiny_config, tiny_splits

SIZE = 16


class LooksAtACorner(nn.Module):
    """Class 0 if the upper left quarter of the image is bright; nothing else counts."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, :, : SIZE // 2, : SIZE // 2].mean((1, 2, 3)) * self.scale
        return torch.stack([bright, -bright, -bright, -bright], dim=1)


@pytest.fixture(scope="module")
def trained() -> Trained:
    config = tiny_config(f"data.image_size={SIZE}")
    return api.Trained.of(config, LooksAtACorner(), tiny_splits(config))


def explained(trained: Trained, *maps: np.ndarray) -> Explained:
    """A bright corner in a dark image, with these maps for class 0."""
    image = np.full((SIZE, SIZE, 3), 40, np.uint8)
    image[: SIZE // 2, : SIZE // 2] = 230
    count, classes = len(maps), np.zeros(len(maps), np.int64)
    shares = np.full((count, 4), 0.25, np.float32)
    found = Explanations(np.stack(maps).astype(np.float32), shares, classes, classes)
    names = tuple(f"map {number}" for number in range(count))
    images = np.repeat(image[None], count, axis=0)
    return Explained(images, found, None, names, trained.inputs.class_names, "", "gradcam", "predicted")


def corner(row: int, column: int) -> np.ndarray:
    saliency = np.zeros((SIZE, SIZE))
    half = SIZE // 2
    saliency[row * half : (row + 1) * half, column * half : (column + 1) * half] = 1
    return saliency


def test_the_right_map_is_better_than_chance_and_the_wrong_one_worse(trained: Trained):
    chance = np.random.default_rng(1).random((SIZE, SIZE))
    found = score_maps(trained, explained(trained, corner(0, 0), corner(1, 1), chance))
    right, wrong, drawn = found.score
    assert right > 0.1 and abs(drawn) < 0.1 and wrong < drawn - 0.05
    assert found.deletion[0] < found.deletion[1] - 0.1 and found.insertion[0] > found.insertion[1] + 0.1
    lines = found.describe(("a", "b", "c")).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a", "b", "c", "mean of 3 (ROAD)"]


def test_an_even_map_has_no_figure(trained: Trained):
    found = score_maps(trained, explained(trained, np.zeros((SIZE, SIZE)), corner(0, 0)))
    assert np.isnan(found.score[0]) and np.isfinite(found.score[1])
    assert "nothing stands out" in found.describe(("a", "b")) and "mean of 1 (ROAD)" in found.describe(
        ("a", "b")
    )
    none = score_maps(trained, explained(trained, np.zeros((SIZE, SIZE))))
    assert none.describe(("a",)) == "a: nothing stands out in its map"


def test_the_figures_do_not_depend_on_the_state_of_the_program(trained: Trained):
    torch.manual_seed(5)
    first = score_maps(trained, explained(trained, corner(0, 0)))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    again = score_maps(trained, explained(trained, corner(0, 0)))
    assert first.deletion.tolist() == again.deletion.tolist()
    assert first.insertion.tolist() == again.insertion.tolist()


def test_each_pixel_has_a_rank_of_its_own():
    """So a fraction of the pixels is that fraction, also where most of a map is 0."""
    saliency = np.zeros((2, 4, 5))
    saliency[0, 1, 2], saliency[0, 3, 3] = 0.5, 1.0
    ranks = _ranks(saliency)
    assert ranks.shape == (2, 4, 5) and [len(np.unique(one)) for one in ranks] == [20, 20]
    assert ranks[0, 3, 3] == 1 and ranks[0, 1, 2] == np.float32(18 / 19)
