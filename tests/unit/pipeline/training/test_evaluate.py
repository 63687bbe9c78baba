"""Evaluation: what is counted with one view per image, and with its mirror image beside it."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from pipeline.config import UnscaledPrecision, Views
from pipeline.data import Batch
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.precision import Precision

CPU = torch.device("cpu")
PLAIN = Precision(UnscaledPrecision(mode="fp32"), CPU)


class Given:
    """A loader of three samples in batches of two, the last filled up."""

    num_samples, steps_per_epoch = 3, 2

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self._images, self._labels = images, labels

    def batches_from(self, step: int) -> Iterator[Batch]:
        raise AssertionError("an evaluation begins at the first sample")

    def __iter__(self):
        for taken, valid in (([0, 1], [True, True]), ([2, 0], [True, False])):
            yield Batch(self._images[taken], self._labels[taken], torch.tensor(valid), torch.tensor(taken))


@pytest.fixture
def case() -> tuple[nn.Module, Given]:
    """Make a linear network that tells left from right.

    With the labels chosen, one view and both views together are right at different samples.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    images = torch.randn(3, 3, 4, 4)
    with torch.no_grad():
        one = model(images)
        both = one + model(images.flip(3))
    assert (one.argmax(1) != both.argmax(1)).sum() == 1  # or the seed is a bad one
    labels = both.argmax(1)
    return model, Given(images, labels)


def test_one_view(case: tuple[nn.Module, Given]):
    model, loader = case
    result = evaluate(model, loader, PLAIN, CPU)
    with torch.no_grad():
        logits = model(loader._images)
    assert (result.correct, result.seen, result.correct_flip_tta) == (2, 3, None)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, loader._labels).item())
    assert result.figures().to_json() == {"loss": result.loss, "accuracy": 2 / 3, "correct": 2, "seen": 3}


def test_the_mirror_image_is_counted_beside_and_changes_no_other_figure(case: tuple[nn.Module, Given]):
    model, loader = case
    plain, augmented = (evaluate(model, loader, PLAIN, CPU, Views(kind)) for kind in ("none", "mirror"))
    assert augmented == EvalResult(plain.correct, 3, plain.loss, correct_views=3, views="flip_tta")
    assert (augmented.correct_flip_tta, augmented.accuracy_flip_tta) == (3, 1.0)
    assert augmented.figures().to_json() == {**plain.figures().to_json(), "accuracy_flip_tta": 1.0}
