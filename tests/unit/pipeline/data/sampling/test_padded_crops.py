"""Tests the draws: pure functions of (seed, epoch, sample id), uniform, in range, and never changing."""

from collections.abc import Callable

import numpy as np
import pytest

from pipeline.config import PlainAugment
from pipeline.data.sampling.padded_crops import PaddedCropDraws, draw_padded_crops
from pipeline.data.sampling.philox import draw_order

ALL_ON = PlainAugment(crop_padding=4, flip=True, cutout=8)
SIZE = (32, 24)
_MASK = 2**64 - 1


def draw(
    seed: int = 0, epoch: int = 0, num_samples: int = 500, size: tuple[int, int] = SIZE, **changes: object
) -> PaddedCropDraws:
    return draw_padded_crops(seed, epoch, num_samples, size, ALL_ON.model_copy(update=changes))


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Compute one block of Philox4x64-10 with Python's integers, after Salmon et al. 2011, section 3.3."""
    for _ in range(10):
        product_0, product_1 = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (product_1 >> 64) ^ counter[1] ^ key[0],
            product_1 & _MASK,
            (product_0 >> 64) ^ counter[3] ^ key[1],
            product_0 & _MASK,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & _MASK, (key[1] + 0xBB67AE8584CAA73B) & _MASK]
    return counter


def test_the_oracle_knows_the_published_answer():
    """The vector is the reference implementation's first known answer (Random123, philox4x64, 10 rounds)."""
    answer = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox4x64([0, 0, 0, 0], [0, 0]) == answer


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**63 - 1, 200)])
def test_sample_i_reads_block_i_of_the_generator(seed: int, epoch: int):
    draws = draw(seed, epoch, 20)
    keys = []
    for sample in range(20):
        # numpy increments the counter before it generates: sample 0 has the block of counter 1
        words = philox4x64([sample + 1, 0, 0, 1], [seed, epoch])
        high, low = [word >> 32 for word in words], [word & 0xFFFFFFFF for word in words]
        assert (draws.crop_y[sample], draws.crop_x[sample]) == (high[0] * 9 >> 32, low[0] * 9 >> 32)
        assert draws.flip[sample] == low[1] % 2
        assert (draws.cutout_y[sample], draws.cutout_x[sample]) == (
            (high[2] * 32 >> 32) - 4,
            (low[2] * 24 >> 32) - 4,
        )
        keys.append(philox4x64([sample + 1, 0, 0, 0], [seed, epoch])[0])
    assert draws.order.tolist() == sorted(range(20), key=keys.__getitem__)


def test_known_answers():
    """A change of these values breaks the repeatability of every published run."""
    draws = draw(seed=1, epoch=2, num_samples=6)
    assert draws.order.tolist() == [1, 4, 0, 2, 3, 5]
    rows = [
        [5, 5, 0, 18, 6],
        [0, 7, 1, 6, 1],
        [5, 5, 1, 3, 18],
        [4, 5, 0, 14, 2],
        [7, 5, 0, 7, 8],
        [6, 5, 1, 7, -4],
    ]
    assert draws.table().tolist() == rows


def test_draws_do_not_depend_on_the_number_of_samples():
    few, many = draw(num_samples=100), draw(num_samples=1000)
    assert (few.table() == many.table()[:100]).all()


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        (("flip", "cutout_y", "cutout_x"), {"crop_padding": 0}),
        (("crop_y", "crop_x", "cutout_y", "cutout_x"), {"flip": False}),
        (("crop_y", "crop_x", "flip"), {"cutout": 0}),
        (("crop_y", "crop_x", "flip"), {"cutout_mode": "inside"}),
        (("crop_y", "crop_x", "flip"), {"size": (16, 16)}),
    ],
)
def test_one_switch_leaves_the_draws_of_the_others_alone(field: tuple[str, ...], changes: dict):
    here, there = draw(), draw(**changes)
    for name in (*field, "order"):
        assert (getattr(here, name) == getattr(there, name)).all(), name


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_change_every_draw(change: dict):
    here, there = draw(), draw(**change)
    for name in ("order", "crop_y", "crop_x", "flip", "cutout_y", "cutout_x"):
        agree = np.mean(getattr(here, name) == getattr(there, name))
        assert agree < (0.6 if name == "flip" else 0.2), name


def test_seed_and_epoch_are_not_interchangeable():
    assert (draw(seed=1, epoch=2).order != draw(seed=2, epoch=1).order).any()


def test_off_is_neutral():
    draws = draw(crop_padding=0, flip=False, cutout=0)
    assert not draws.table().any()


def test_types_and_shapes():
    draws = draw(num_samples=7)
    assert (draws.order.dtype, draws.flip.dtype) == (np.int64, bool)
    assert {getattr(draws, name).dtype for name in ("crop_y", "crop_x", "cutout_y", "cutout_x")} == {
        np.dtype(np.int32)
    }
    assert (draws.table().shape, draws.table().dtype) == ((7, 5), np.int32)


@pytest.mark.parametrize("num_samples", [1, 2, 1437])
def test_order_is_a_permutation(num_samples: int):
    order = draw_order(0, 0, num_samples)
    assert sorted(order.tolist()) == list(range(num_samples))


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crops_reach_every_offset_and_no_other(padding: int):
    draws = draw(num_samples=2000, crop_padding=padding)
    assert set(draws.crop_y) == set(draws.crop_x) == set(range(2 * padding + 1))


@pytest.mark.parametrize("box", [1, 7, 8, 24])
def test_a_clipped_box_has_its_centre_on_every_pixel(box: int):
    draws = draw(num_samples=5000, cutout=box)
    assert set(draws.cutout_y + box // 2) == set(range(32))
    assert set(draws.cutout_x + box // 2) == set(range(24))


@pytest.mark.parametrize("box", [1, 7, 8, 24])
def test_a_box_inside_reaches_every_place_and_the_border(box: int):
    draws = draw(num_samples=5000, cutout=box, cutout_mode="inside")
    assert set(draws.cutout_y) == set(range(32 - box + 1))
    assert set(draws.cutout_x) == set(range(24 - box + 1))


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        (lambda d: d.crop_y, 9),
        (lambda d: d.crop_x, 9),
        (lambda d: d.flip, 2),
        (lambda d: d.cutout_y + 4, 32),
        (lambda d: d.cutout_x + 4, 24),
    ],
)
def test_draws_are_uniform_and_independent_of_their_neighbours(
    values: Callable[[PaddedCropDraws], np.ndarray], limit: int
):
    draws = values(draw(num_samples=50_000)).astype(np.int64)
    # six standard deviations
    assert chi_square(np.bincount(draws, minlength=limit)) < limit + 6 * np.sqrt(2 * limit)
    pairs = np.bincount(draws[:-1] * limit + draws[1:], minlength=limit**2)
    assert chi_square(pairs) < limit**2 + 6 * np.sqrt(2 * limit**2)


def test_the_two_axes_are_independent():
    draws = draw(num_samples=50_000)
    assert chi_square(np.bincount(draws.crop_y * 9 + draws.crop_x, minlength=81)) < 81 + 6 * np.sqrt(2 * 81)
    assert abs(np.corrcoef(draws.order, np.arange(50_000))[0, 1]) < 0.03


def test_jitter_is_word_3_of_the_block_and_changes_no_other_draw():
    draws = draw(7, 3, 20, brightness=0.4, contrast=0.3)
    for sample in range(20):
        word = philox4x64([sample + 1, 0, 0, 1], [7, 3])[3]
        assert draws.jitter[sample].view(np.uint32).tolist() == [word >> 32, word & 0xFFFFFFFF]
    assert (draws.table()[:, :5] == draw(7, 3, 20).table()).all()
    assert (draws.order == draw(7, 3, 20).order).all()
    assert (draws.table()[:, 5:] == draws.jitter).all()


@pytest.mark.parametrize(("brightness", "contrast", "columns"), [(0, 0, 5), (0.1, 0, 7), (0, 0.1, 7)])
def test_jitter_that_is_off_has_no_columns(brightness: float, contrast: float, columns: int):
    table = draw(num_samples=7, brightness=brightness, contrast=contrast).table()
    assert (table.shape, table.dtype, table.flags["C_CONTIGUOUS"]) == ((7, columns), np.int32, True)


def test_jitter_is_uniform_and_its_two_parts_are_independent():
    jitter = draw(num_samples=50_000, contrast=0.3).jitter
    sixteenths = (jitter.astype(np.int64) + 2**31) >> 28
    for values in sixteenths.T:
        assert chi_square(np.bincount(values, minlength=16)) < 16 + 6 * np.sqrt(2 * 16)
    pairs = np.bincount(sixteenths[:, 0] * 16 + sixteenths[:, 1], minlength=256)
    assert chi_square(pairs) < 256 + 6 * np.sqrt(2 * 256)


def test_alternating_flips_turn_in_every_epoch():
    first, second, third = (draw(5, epoch, flip="alternating").flip for epoch in (0, 1, 2))
    assert np.array_equal(first, draw(5, 0).flip)
    assert np.array_equal(second, ~first) and np.array_equal(third, first)
    assert not np.array_equal(draw(5, 1, flip="alternating").crop_x, draw(5, 0).crop_x)
