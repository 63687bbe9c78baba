"""Test-time views: against one image at a time in plain torch, for all images and for the least sure ones."""

import re
from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import UnscaledPrecision, Views, label_of
from pipeline.config.evaluation import VIEWS_NAME, ViewsKind
from pipeline.data import Batch
from pipeline.errors import TrainingError
from pipeline.training.evaluate import evaluate
from pipeline.training.precision import Precision
from pipeline.training.views import least_sure, mean_logits

CPU = torch.device("cpu")
PLAIN = Precision(UnscaledPrecision(mode="fp32"), CPU)
KINDS: list[ViewsKind] = ["mirror", "mirror_shift"]
NUM_IMAGES, BATCH = 22, 4


class Network(nn.Module):
    """A network that tells left from right and top from bottom, and notes the shapes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 3, 5))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(images.shape))
        return self.layers(images)


class Given:
    """A loader in the order of the samples, whose last batch is filled up with sample 0."""

    num_samples, steps_per_epoch = NUM_IMAGES, -(-NUM_IMAGES // BATCH)

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, second: Sequence[int] | None = None):
        self._images, self._labels = images, labels
        self._orders = [range(NUM_IMAGES), second or range(NUM_IMAGES)]

    def batches_from(self, step: int) -> Iterator[Batch]:
        raise AssertionError("an evaluation begins at the first sample")

    def __iter__(self) -> Iterator[Batch]:
        order = torch.tensor([*self._orders.pop(0), *[0] * (-NUM_IMAGES % BATCH)])
        valid = torch.arange(len(order)) < NUM_IMAGES
        for rows, of_image in zip(order.split(BATCH), valid.split(BATCH), strict=True):
            yield Batch(self._images[rows], self._labels[rows], of_image, rows)


class Resident(Given):
    """A loader of images in memory."""

    def show(self, samples: torch.Tensor) -> Batch:
        of_image = torch.ones(len(samples), dtype=torch.bool)
        return Batch(self._images[samples], self._labels[samples], of_image, samples)


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(NUM_IMAGES, 3, 6, 5, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def labels(network: Network, images: torch.Tensor) -> torch.Tensor:
    """Return what all views together say, except for every fifth image: one view and several count apart."""
    said = reference(network, images, "mirror_shift").argmax(1)
    assert (said != reference(network, images, "none").argmax(1)).sum() > 4  # or the seed is a bad one
    said[::5] = (said[::5] + 1) % 5
    return said


@torch.no_grad()
def reference(network: Network, images: torch.Tensor, kind: ViewsKind, share: float = 1.0) -> torch.Tensor:
    """Take the views of one image at a time, with their weights in a list."""
    one = network.layers(images)
    surest = one.softmax(1).max(1).values.tolist()
    ranked = sorted(range(len(images)), key=lambda number: surest[number])
    several = one.clone()
    for number in ranked[: round(share * len(images))]:
        image = images[number : number + 1].contiguous()
        padded = F.pad(image, (1, 1, 1, 1), mode="reflect")
        height, width = image.shape[2:]
        views = [(0.5, image)]
        if kind == "mirror_shift":
            upper_left, lower_right = padded[..., :height, :width], padded[..., 2:, 2:]
            views = [(0.25, image), (0.125, upper_left), (0.125, lower_right)]
        elif kind == "none":
            continue
        several[number] = sum(
            weight * network.layers(view)[0] for w, v in views for weight, view in ((w, v), (w, v.flip(-1)))
        )
    return several


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_the_mean_over_the_views(network: Network, images: torch.Tensor, kind: ViewsKind):
    with torch.no_grad():
        found = mean_logits(network, images, kind)
    torch.testing.assert_close(found, reference(network, images, kind))
    assert len(network.shapes) == {"none": 1, "mirror": 2, "mirror_shift": 6}[kind]


@torch.no_grad()
def test_a_network_that_gives_its_logits_in_the_same_memory(network: Network, images: torch.Tensor):
    """As one does that is replayed as a CUDA graph."""
    memory = torch.empty(NUM_IMAGES, 5)
    found = mean_logits(lambda some: memory.copy_(network(some)), images, "mirror_shift")
    assert torch.equal(found, mean_logits(network, images, "mirror_shift"))


def test_every_view_keeps_the_memory_format(images: torch.Tensor):
    def forward(some: torch.Tensor) -> torch.Tensor:
        assert some.is_contiguous(memory_format=torch.channels_last)
        return some.flatten(1)

    mean_logits(forward, images, "mirror_shift")


def test_of_equally_sure_images_the_first_ones_are_chosen():
    assert least_sure(torch.tensor([0.5, 0.2, 0.5, 0.2, 0.2]), 4).tolist() == [1, 3, 4, 0]


# --- over a loader ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.999, 1.0])
def test_a_loader_with_padding(
    network: Network, images: torch.Tensor, labels: torch.Tensor, kind: ViewsKind, share: float
):
    """The padding counts neither as an image nor among the least sure ones; the mode is as before."""
    network.train()
    views = Views(kind, share)
    result = evaluate(network, Given(images, labels), PLAIN, CPU, views)
    logits = (reference(network, images, "none"), reference(network, images, kind, share))
    right = [(some.argmax(1) == labels).sum() for some in logits]
    assert (result.correct, result.correct_views, result.seen) == (*right, NUM_IMAGES)
    assert result.views == views.name and network.training and network.layers.training
    assert set(network.shapes) == {(BATCH, 3, 6, 5)}
    num_views, count = {"mirror": 2, "mirror_shift": 6}[kind], views.count(NUM_IMAGES)
    once, again = (6 * num_views, 0) if share == 1 else (6, -(-count // BATCH) * num_views)
    assert len(network.shapes) == once + again


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.05, 0.29, 0.5, 0.999])
def test_a_loader_of_images_in_memory(
    network: Network, images: torch.Tensor, labels: torch.Tensor, kind: ViewsKind, share: float
):
    """It is read once; the least sure images are seen again in equal batches, without their own view."""
    views = Views(kind, share)
    result = evaluate(network, Resident(images, labels), PLAIN, CPU, views)
    num_calls, count = len(network.shapes), views.count(NUM_IMAGES)
    assert result == evaluate(network, Given(images, labels), PLAIN, CPU, views)
    parts = -(-count // BATCH)
    again = network.shapes[6:num_calls]
    assert len(again) == parts * {"mirror": 1, "mirror_shift": 5}[kind]
    assert {shape[0] for shape in again} == {-(-count // parts)}


def test_the_figures_of_one_view_do_not_change(network: Network, images: torch.Tensor, labels: torch.Tensor):
    plain = evaluate(network, Given(images, labels), PLAIN, CPU).figures().to_json()
    views = Views("mirror_shift", 0.25)
    found = evaluate(network, Given(images, labels), PLAIN, CPU, views).figures().to_json()
    assert found.pop("accuracy_mirror_shift_25pct") != plain["accuracy"] and found == plain


def test_a_loader_that_gives_another_order_the_second_time(
    network: Network, images: torch.Tensor, labels: torch.Tensor
):
    loader = Given(images, labels, second=range(NUM_IMAGES - 1, -1, -1))
    with pytest.raises(TrainingError, match=r"evaluation.views_share=0.5: .* 11 images .*=1$"):
        evaluate(network, loader, PLAIN, CPU, Views("mirror", 0.5))


# --- names ---


@pytest.mark.parametrize(
    ("views", "name", "label"),
    [
        (Views("mirror"), "flip_tta", "with flip"),
        (Views("mirror", 0.25), "mirror_25pct", "with mirror (least sure 25%)"),
        (Views("mirror_shift"), "mirror_shift", "with mirror and shift"),
        (Views("mirror_shift", 0.29), "mirror_shift_29pct", "with mirror and shift (least sure 29%)"),
        (Views("mirror_shift", 0.125), "mirror_shift_12.5pct", "with mirror and shift (least sure 12.5%)"),
        (Views("mirror", 1e-7), "mirror_1e-05pct", "with mirror (least sure 1e-05%)"),
    ],
)
def test_views_have_names(views: Views, name: str, label: str):
    assert views.name == name and label_of(name) == label
    assert name == "flip_tta" or re.fullmatch(VIEWS_NAME, name)


def test_a_share_is_rounded_to_the_nearest_count_but_not_to_none():
    counts = [Views("mirror", share).count(100) for share in (1e-9, 0.004, 0.29, 0.296, 1.0)]
    assert counts == [1, 1, 29, 30, 100] and Views(share=0.5).count(100) == 0
