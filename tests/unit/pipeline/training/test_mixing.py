"""Checks mixed images and labels, pixel by pixel, against the papers, and the draws of each step."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from pipeline.config import MIX_SOURCES, AnyMixAugment, MixAugment, MixupOrCutmixAugment
from pipeline.data.sampling.philox import RESIZED_CROPS, philox_blocks
from pipeline.training.losses import count_correct
from pipeline.training.mixing import MixDraws, draw_mixing, mix
from tests.tiny import random_batch, tiny_config, tiny_trainer

NAMES = ["mixup", "cutmix", "ricap", "mixup_or_cutmix"]
SIZE = 9


def config(name: str, **keys: Any) -> AnyMixAugment:
    kind = MixupOrCutmixAugment if name == "mixup_or_cutmix" else MixAugment
    return kind.model_validate({"mix": name, **keys})


def draw(
    name: str, steps: int = 400, seed: int = 0, first: int = 0, size: int = SIZE, **keys: Any
) -> np.ndarray:
    return draw_mixing(config(name, **keys), seed, first, steps, size)


# --- draws applied --------------------------------------------------------------------------------------


def is_in_box(y: int, x: int, row: np.ndarray) -> bool:
    top, bottom, left, right = row[2:6]
    return top <= y < bottom and left <= x < right


def by_hand(name: str, images: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Mix one pixel after another, by the definition of the draws."""
    mixed = np.empty_like(images)
    group = MIX_SOURCES[name]
    for i, _, y, x in np.ndindex(*images.shape):
        source = [images[i // group * group + (i % group + k) % group] for k in range(group)]
        if name == "mixup":
            pixel = row[0] * source[0][:, y, x] + row[1] * source[1][:, y, x]
        elif name == "cutmix":
            pixel = source[int(is_in_box(y, x, row))][:, y, x]
        elif name == "mixup_or_cutmix":
            share = 0 if is_in_box(y, x, row) else row[6]
            pixel = share * source[0][:, y, x] + (1 - share) * source[1][:, y, x]
        else:
            height, width, *places = row[4:].astype(int)
            part = (0 if y < height else 2) + (0 if x < width else 1)
            pixel = source[part][:, y + places[part], x + places[4 + part]]
        mixed[i, :, y, x] = pixel
    return mixed


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_images_are_those_of_the_papers(name: str, dtype: torch.dtype, memory_format: torch.memory_format):
    images = torch.randn(8, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = images.to(dtype).contiguous(memory_format=memory_format)
    labels = torch.arange(8) * 10
    before = images.clone()
    for row in draw(name, 12):
        mixed, all_labels, fractions = mix(name, images, labels, torch.from_numpy(row))
        expected = torch.from_numpy(by_hand(name, images.double().numpy(), row.astype(np.float64)))
        rounding = 0 if not name.startswith("mixup") else {torch.float32: 1e-6, torch.float16: 2e-3}[dtype]
        torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=rounding)
        assert mixed.dtype == dtype and mixed.is_contiguous(memory_format=memory_format)
        group = MIX_SOURCES[name]
        for i in range(8):
            sources = [i // group * group + (i % group + k) % group for k in range(group)]
            assert all_labels[i].tolist() == [10 * source for source in sources]
        assert fractions.tolist() == row[:group].tolist()
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", ["cutmix", "ricap"])
def test_a_label_has_the_fraction_of_its_pixels(name: str):
    """Each source has one colour, whose fraction of the image is that of its label."""
    group = MIX_SOURCES[name]
    images = torch.arange(group).float()[:, None, None, None].expand(group, 1, SIZE, SIZE).contiguous()
    for row in draw(name, 50):
        mixed, labels, fractions = mix(name, images, torch.arange(group), torch.from_numpy(row))
        for i in range(group):
            seen = torch.stack([(mixed[i] == label).float().mean() for label in labels[i]])
            torch.testing.assert_close(seen, fractions, rtol=0, atol=1e-6)


# --- the draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_step_has_its_draws_whatever_was_drawn_before(name: str):
    whole = draw(name, 40, seed=5)
    assert (draw(name, 7, seed=5, first=13) == whole[13:20]).all()
    assert not (draw(name, 40, seed=6) == whole).all()
    source = MixDraws(config(name), 5, SIZE, torch.device("cpu"))
    for step in (30, 0, 39, 1024, 1023):
        assert source.at(step).tolist() == draw(name, 1, seed=5, first=step)[0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_fractions_add_up_and_boxes_are_inside(name: str):
    rows = draw(name)
    group = MIX_SOURCES[name]
    np.testing.assert_allclose(rows[:, :group].sum(1), 1, atol=1e-6)
    assert (rows[:, :group] >= 0).all()
    whole = rows[:, group:6] if name == "mixup_or_cutmix" else rows[:, group:]
    assert (whole == np.rint(whole)).all()
    if name == "mixup":
        assert (rows.astype(np.float16) == rows).all()
    if name == "cutmix":
        top, bottom, left, right = rows[:, 2:].T
        for start, end in ((top, bottom), (left, right)):
            assert ((start >= 0) & (start <= end) & (end <= SIZE)).all()
        assert {*top} >= set(range(SIZE - 1)) and {*right} >= set(range(1, SIZE + 1))


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_step_of_both_is_one_of_mixup_or_one_of_cutmix(share: float):
    both = draw("mixup_or_cutmix", 1000, mix_alpha=0.2, cutmix_alpha=2.0, cutmix_share=share)
    mixup, cutmix = draw("mixup", 1000, mix_alpha=0.2), draw("cutmix", 1000, mix_alpha=2.0)
    of_mixup = (both[:, 2:6] == 0).all(1) & (both[:, 6] == both[:, 0])
    assert abs((~of_mixup).mean() - share) < 0.05
    assert (both[of_mixup][:, :2] == mixup[of_mixup]).all()
    assert (both[~of_mixup][:, :6] == cutmix[~of_mixup]).all() and (both[~of_mixup][:, 6] == 1).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_fractions_are_those_of_torchvisions_mixup_and_cutmix(alpha: float):
    """Compare the quantiles of the fractions with those that torchvision's own transforms draw."""
    torch.manual_seed(0)
    images, labels = torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])
    for name, transform in (
        ("mixup", v2.MixUp(alpha=alpha, num_classes=2)),
        ("cutmix", v2.CutMix(alpha=alpha, num_classes=2)),
    ):
        theirs = np.array([transform(images, labels)[1][0, 0].item() for _ in range(1500)])
        ours = draw(name, 4000, size=64, mix_alpha=alpha)[:, 0]
        between = np.array([0.105, 0.305, 0.505, 0.705, 0.905, 0.985])
        below = [
            np.searchsorted(np.sort(fractions), between) / len(fractions) for fractions in (theirs, ours)
        ]
        np.testing.assert_allclose(below[0], below[1], atol=0.04)


@pytest.mark.parametrize("stream", [0, 1, RESIZED_CROPS])
def test_the_draws_are_not_those_of_the_loaders(stream: int):
    """With alpha 1 a fraction of Mixup is a uniform number: the first of the two blocks of its step."""
    words = philox_blocks(0, 0, stream, 2 * 40)[::2, 0]
    uniform = (words >> np.uint64(11)) * 2.0**-53
    assert (draw("mixup", 40)[:, 0] != np.rint(uniform * 1024) / 1024).mean() > 0.9


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_fractions_are_beta_distributed(alpha: float):
    """The distributions are compared between the values that rounding leaves."""

    def distance(fractions: np.ndarray, grid: int) -> float:
        between = (np.arange(grid) + 0.5) / grid
        distribution = np.searchsorted(np.sort(fractions), between) / len(fractions)
        return np.abs(distribution - stats.beta(alpha, alpha).cdf(between)).max()

    assert distance(draw("mixup", 4000, mix_alpha=alpha)[:, 0], 1024) < 0.03
    height, width = (draw("ricap", 4000, size=512, mix_alpha=alpha)[:, column] / 512 for column in (4, 5))
    assert distance(height, 512) < 0.03 and distance(width, 512) < 0.03
    assert abs(np.corrcoef(height, width)[0, 1]) < 0.05


def test_the_box_of_cutmix_has_the_area_drawn_where_the_border_does_not_clip_it():
    rows = draw("cutmix", 4000, size=1024)
    height, width = rows[:, 3] - rows[:, 2], rows[:, 5] - rows[:, 4]
    whole = (rows[:, 2] > 0) & (rows[:, 3] < 1024) & (rows[:, 4] > 0) & (rows[:, 5] < 1024)
    assert (height[whole] == width[whole]).all() and whole.sum() > 300
    np.testing.assert_allclose(rows[:, 1], height * width / 1024**2, atol=1e-6)


def test_crops_of_ricap_are_anywhere_in_their_sources():
    """A part of h x w pixels comes from any place in which it fits, the first and the last included."""
    seen: dict[tuple[int, int], set[int]] = {}
    for row in draw("ricap", 4000, size=4).astype(int):
        height = row[4]
        for part, extent in enumerate((height, height, 4 - height, 4 - height)):
            first = row[6 + part] + (height if part > 1 else 0)
            seen.setdefault((part, extent), set()).add(first)
    for (_, extent), places in seen.items():
        assert places == set(range(4 - extent + 1))


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_are_not_mixed(name: str):
    rows = draw(name, 1000, mix_probability=0.3)
    unmixed = rows[rows[:, 0] == 1]
    assert 0.65 < len(unmixed) / len(rows) < 0.76  # a few of the others drew the fraction 1
    images = random_batch().images
    draws = torch.from_numpy(draw(name, 9, mix_probability=1e-9, size=8)[4])
    mixed, _, fractions = mix(name, images, torch.arange(8), draws)
    assert torch.equal(mixed, images) and fractions[0] == 1


# --- in the step ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("name", NAMES)
def test_the_step_learns_from_mixed_images_and_targets(name: str):
    trainer = tiny_trainer(tiny_config(f"augment.mix={name}", "loss.label_smoothing=0.1"))
    trainer.state.step = 3
    batch = random_batch()
    draws = torch.from_numpy(draw(name, 1, seed=3, first=3, size=8)[0])
    images, labels, fractions = mix(name, batch.images, batch.labels, draws)
    with torch.no_grad():
        logits = trainer.state.model(images)
    target = torch.zeros(8, 4, dtype=torch.float64)
    for i in range(8):
        for label, part in zip(labels[i].tolist(), fractions.tolist(), strict=True):
            target[i, label] += 0.9 * part
    target += 0.1 / 4
    output = trainer.step(batch)
    expected = -(target * logits.double().log_softmax(1)).sum(1).mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert output.correct.item() == pytest.approx(count_correct(logits, labels, fractions).item())


def test_a_prediction_counts_as_the_fraction_of_its_class():
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])
    labels = torch.tensor([[0, 1], [0, 1], [2, 2]])
    assert count_correct(logits, labels, torch.tensor([0.75, 0.25])).item() == 0.75 + 0.25 + 1
    assert count_correct(logits, labels[:, 0]).item() == 2
