"""Mixes the images of a batch with one another, and their labels with them: Mixup, CutMix, RICAP.

A batch consists of groups of neighbours, of two images (Mixup, CutMix) or four (RICAP). Within a group the
sources of image i are i, i + 1, … in turn, each once in each part. The order of an epoch is random, so groups
of neighbours are groups drawn at random from the global batch. A group lies within one process for every
number of processes, so no image needs to be sent.

As in the papers' own code, there is one draw per step for the whole batch. It is a pure function of (seed,
step), from Philox as in `data/sampling/philox.py`. The draw is a tensor on the device and the shapes do not
depend on it, so a step that mixes can be captured.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange

from pipeline.config import MIX_SOURCES, AnyMixAugment, MixupOrCutmixAugment

_STREAM = 3  # highest word of the Philox counter; `data/sampling/philox.py` has those of the loaders' draws
_WORDS = 8  # 64-bit random words for each step: two Philox blocks
_STEPS_AHEAD = 1024  # drawn at once


def draw_mixing(
    augment: AnyMixAugment, seed: int, first_step: int, num_steps: int, image_size: int
) -> np.ndarray:
    """Draw the mixing of NUM_STEPS steps, beginning with FIRST_STEP.

    With P sources, a row begins with their P fractions of the target, which add up to 1. Then:

    - `mixup`: nothing; the fractions, multiples of 1/1024, which float16 holds exactly, are those of the
      pixels too;
    - `cutmix`: top, bottom, left, right of the box that the second source fills (bottom and right excluded);
    - `mixup_or_cutmix`: the box of the second source, empty in steps with Mixup; then the fraction that the
      first source has of the pixels outside of the box, 1 in steps with CutMix;
    - `ricap`: height and width of the upper left part; for each part the offset in rows, then for each part
      the offset in columns, from a pixel to its place in the source.

    A fraction is Beta(alpha, alpha), computed as the quantile of one uniform number. In a step that is not
    mixed, by `mix_probability`, the first source has the fraction 1.

    Returns:
        (num_steps, D) float32, whole numbers except for the fractions.
    """
    key, counter = (
        np.array([seed, 0], np.uint64),
        np.array([first_step * _WORDS // 4, 0, 0, _STREAM], np.uint64),
    )
    raw = np.random.Philox(key=key, counter=counter).random_raw(num_steps * _WORDS)
    words = rearrange(raw, "(step word) -> word step", word=_WORDS)
    draws = _DRAW[augment.mix](augment, words, image_size)
    return np.ascontiguousarray(draws.T, np.float32)


def _draw_mixup(augment: AnyMixAugment, words: np.ndarray, image_size: int) -> np.ndarray:
    fraction = np.where(_unmixed(augment, words), 1.0, np.rint(_beta(augment, words[0]) * 1024) / 1024)
    return np.stack([fraction, 1 - fraction])


def _draw_cutmix(augment: AnyMixAugment, words: np.ndarray, image_size: int) -> np.ndarray:
    half = (image_size * np.sqrt(1 - _beta(augment, words[0]))).astype(np.int64) // 2
    centre = np.stack([_below(_high(words[3]), image_size), _below(_low(words[3]), image_size)])
    edges = [np.clip(edge, 0, image_size) for edge in (centre - half, centre + half)]
    start, end = (np.where(_unmixed(augment, words), 0, edge) for edge in edges)
    fraction = 1 - (end - start).prod(axis=0) / image_size**2
    return np.stack([fraction, 1 - fraction, start[0], end[0], start[1], end[1]])


def _draw_mixup_or_cutmix(augment: AnyMixAugment, words: np.ndarray, image_size: int) -> np.ndarray:
    """Draw whether a step is one of CutMix, then the step as with that kind alone."""
    assert isinstance(augment, MixupOrCutmixAugment)
    of_cutmix = augment.model_copy(update={"mix_alpha": augment.cutmix_alpha})
    mixup, cutmix = _draw_mixup(augment, words, image_size), _draw_cutmix(of_cutmix, words, image_size)
    nothing, everything = np.zeros_like(cutmix[2:]), np.ones_like(cutmix[:1])
    return np.where(
        _uniform(words[1]) < augment.cutmix_share,
        np.concatenate([cutmix, everything]),
        np.concatenate([mixup, nothing, mixup[:1]]),
    )


def _draw_ricap(augment: AnyMixAugment, words: np.ndarray, image_size: int) -> np.ndarray:
    extents = [np.rint(image_size * _beta(augment, words[number])) for number in (1, 0)]
    unmixed = _unmixed(augment, words)
    height, width = (np.where(unmixed, image_size, extent).astype(np.int64) for extent in extents)
    heights = np.stack([height, height, image_size - height, image_size - height])
    widths = np.stack([width, image_size - width, width, image_size - width])
    rows = _below(_high(words[4:8]), image_size - heights + 1)
    columns = _below(_low(words[4:8]), image_size - widths + 1)
    rows[2:] -= height  # from the pixel's place in the whole image, not in its part
    columns[1::2] -= width
    fractions = heights * widths / image_size**2
    return np.concatenate([fractions, height[None], width[None], rows, columns])


def _uniform(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint64(11)) * 2.0**-53


def _beta(augment: AnyMixAugment, words: np.ndarray) -> np.ndarray:
    from scipy.special import betaincinv  # takes a while to import

    return betaincinv(augment.mix_alpha, augment.mix_alpha, _uniform(words))


def _unmixed(augment: AnyMixAugment, words: np.ndarray) -> np.ndarray:
    return _uniform(words[2]) >= augment.mix_probability


def _high(words: np.ndarray) -> np.ndarray:
    return words >> np.uint64(32)


def _low(words: np.ndarray) -> np.ndarray:
    return words & np.uint64(0xFFFFFFFF)


def _below(bits: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """Turn 32 random bits into a whole number from 0 to LIMIT - 1, int64."""
    return ((bits * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int64)


_DRAW: dict[str, Callable[[AnyMixAugment, np.ndarray, int], np.ndarray]] = {
    "mixup": _draw_mixup,
    "cutmix": _draw_cutmix,
    "mixup_or_cutmix": _draw_mixup_or_cutmix,
    "ricap": _draw_ricap,
}


class MixDraws:
    """Holds the mixing draws of a run's steps on the device.

    Args:
        augment: the section `augment`, with a `mix`.
        seed: the run's seed.
        image_size: height and width of the images, in pixels.
        device: of the draws.
    """

    def __init__(self, augment: AnyMixAugment, seed: int, image_size: int, device: torch.device):
        self._augment, self._seed, self._image_size, self._device = augment, seed, image_size, device
        self._chunk: int | None = None
        self._table = torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """Return the draws of one optimizer step, a row of `draw_mixing`; does not wait for the device."""
        chunk, row = divmod(step, _STEPS_AHEAD)
        if chunk != self._chunk:
            first = chunk * _STEPS_AHEAD
            draws = draw_mixing(self._augment, self._seed, first, _STEPS_AHEAD, self._image_size)
            self._table = torch.from_numpy(draws)
            if self._device.type == "cuda":
                self._table = self._table.pin_memory().to(self._device, non_blocking=True)
            self._chunk = chunk
        return self._table[row]


def mix(
    name: str, images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix a batch.

    Args:
        name: `mixup`, `cutmix`, `ricap` or `mixup_or_cutmix`.
        images: (B, C, H, W), in the order of the global batch; B is a multiple of the number of sources P.
        labels: (B,) int64.
        draws: a row of `draw_mixing`, on the same device.

    Returns:
        The images, in the same type and layout; the labels of their sources, (B, P) int64; and the fractions
        that the sources have of the target, (P,).
    """
    sources = MIX_SOURCES[name]
    all_labels = torch.stack([_from_neighbour(labels, number, sources) for number in range(sources)], dim=1)
    return _APPLY[name](images, draws), all_labels, draws[:sources]


def _from_neighbour(batch: torch.Tensor, distance: int, group: int) -> torch.Tensor:
    """Return the item DISTANCE further, cyclically, in the group of each item; keeps the memory layout."""
    neighbours = torch.empty_like(batch)
    neighbours.unflatten(0, (-1, group)).copy_(batch.unflatten(0, (-1, group)).roll(-distance, 1))
    return neighbours


def _mixup(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return the weighted means of two images (Zhang et al. 2018, arXiv:1710.09412, equation 2)."""
    return torch.lerp(_from_neighbour(images, 1, 2), images, draws[0].to(images.dtype))


def _cutmix(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Fill a box from another image (Yun et al. 2019, arXiv:1905.04899, section 3.1).

    Its centre is anywhere in the image, and the border clips it.
    """
    return _fill_box(images, _from_neighbour(images, 1, 2), draws)


def _fill_box(images: torch.Tensor, others: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = draws[2:6]
    rows, columns = (torch.arange(extent, device=images.device) for extent in images.shape[2:])
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return torch.where(inside, others, images)


def _mixup_or_cutmix(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Apply both; the draws make one of them leave the images alone."""
    neighbours = _from_neighbour(images, 1, 2)
    # with the weight 1, `lerp` returns the images bit for bit
    return _fill_box(torch.lerp(neighbours, images, draws[6].to(images.dtype)), neighbours, draws)


def _ricap(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Patch random crops of four images into one (Takahashi et al. 2018, arXiv:1811.09030, section 3)."""
    height, width, row_shift, column_shift = *draws[4:6], *draws[6:].long().split(4)
    extents = (len(images), *images.shape[2:])
    position, rows, columns = (torch.arange(extent, device=images.device) for extent in extents)
    part = 2 * (rows >= height).long()[:, None] + (columns >= width).long()
    sample = position[:, None, None] // 4 * 4 + (position[:, None, None] + part) % 4
    places = sample, rows[:, None] + row_shift[part], columns + column_shift[part]
    pixels = rearrange(images, "b c h w -> b h w c")[places]
    return torch.empty_like(images).copy_(rearrange(pixels, "b h w c -> b c h w"))


_APPLY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mixup": _mixup,
    "cutmix": _cutmix,
    "mixup_or_cutmix": _mixup_or_cutmix,
    "ricap": _ricap,
}
