"""Mixup, CutMix and RICAP: images of a batch mixed with one another, and their labels with them.

Who is mixed with whom: a batch falls into groups of neighbours, two (Mixup, CutMix) or four (RICAP), and within a group the sources of
image i are i, i + 1, … in turn, each once in each part. The order of an epoch being random, groups of neighbours are groups drawn at
random from the global batch. A group lies within one process whatever their number, so that nothing needs to be sent.

What is drawn, once per step for the whole batch as the papers' own code does, is a pure function of (seed, step), from Philox as in
`data/draws.py`. It is applied as a tensor on the device, in shapes that do not depend on it: a step that mixes can be captured.
"""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange

from pipeline.config import MIX_SOURCES, AugmentConfig

_STREAM = 3  # highest word of the Philox counter; the loaders' draws have 0, 1 and 2
_WORDS = 8  # 64-bit random words for each step: two Philox blocks
_STEPS_AHEAD = 1024  # drawn at once


def draw_mixing(
    augment: AugmentConfig, seed: int, first_step: int, num_steps: int, image_size: int
) -> np.ndarray:
    """Draw what NUM_STEPS steps from FIRST_STEP on mix.

    With P sources, a row begins with their P shares of the target, which add up to 1. Then:

    - `mixup`: nothing; the shares, multiples of 1/1024, which float16 holds exactly, are those of the pixels too;
    - `cutmix`: top, bottom, left, right of the box that the second source fills (bottom and right excluded);
    - `ricap`: height and width of the upper left part; for each part the rows, then the columns, from a pixel to where its source is.

    A share is Beta(alpha, alpha) as the quantile of one uniform number. In a step that `mix_probability` spares, the first source has all.

    Returns:
        (num_steps, D) float32, whole numbers but for the shares.
    """
    from scipy.special import betaincinv  # takes a while to import

    key, counter = (
        np.array([seed, 0], np.uint64),
        np.array([first_step * _WORDS // 4, 0, 0, _STREAM], np.uint64),
    )
    words = rearrange(
        np.random.Philox(key=key, counter=counter).random_raw(num_steps * _WORDS),
        "(step word) -> word step",
        word=_WORDS,
    )
    uniform = (words >> np.uint64(11)) * 2.0**-53
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)

    def below(bits: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
        return (bits * np.asarray(limit, np.uint64)) >> np.uint64(32)

    share = betaincinv(augment.mix_alpha, augment.mix_alpha, uniform[0])
    spared = uniform[2] >= augment.mix_probability
    if augment.mix == "mixup":
        share = np.where(spared, 1.0, np.rint(share * 1024) / 1024)
        return np.stack([share, 1 - share], axis=1).astype(np.float32)
    if augment.mix == "cutmix":
        half = (image_size * np.sqrt(1 - share)).astype(np.int64) // 2
        centre = np.stack([below(high[3], image_size), below(low[3], image_size)]).astype(np.int64)
        start, end = (
            np.where(spared, 0, edge.clip(0, image_size)) for edge in (centre - half, centre + half)
        )
        share = 1 - (end - start).prod(axis=0) / image_size**2
        return np.stack([share, 1 - share, start[0], end[0], start[1], end[1]], axis=1).astype(np.float32)
    assert augment.mix == "ricap"
    other = betaincinv(augment.mix_alpha, augment.mix_alpha, uniform[1])
    height, width = (
        np.where(spared, image_size, np.rint(image_size * part)).astype(np.int64) for part in (other, share)
    )
    heights = np.stack([height, height, image_size - height, image_size - height])
    widths = np.stack([width, image_size - width, width, image_size - width])
    rows, columns = (
        below(bits[4:8], image_size - extents + 1).astype(np.int64)
        for bits, extents in ((high, heights), (low, widths))
    )
    rows[2:] -= height  # from the pixel's place in the whole image, not in its part
    columns[1::2] -= width
    shares = heights * widths / image_size**2
    return np.concatenate([shares, height[None], width[None], rows, columns]).T.astype(np.float32)


class MixDraws:
    """What each step of a run mixes, on the device.

    Args:
        augment: with a `mix` other than `none`.
        seed: the run's seed.
        image_size: height and width of the images, in pixels.
        device: of the draws.
    """

    def __init__(self, augment: AugmentConfig, seed: int, image_size: int, device: torch.device):
        self._augment, self._seed, self._image_size, self._device = augment, seed, image_size, device
        self._chunk: int | None = None
        self._table = torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """The draws of one optimizer step, as a row of `draw_mixing`; does not wait for the device."""
        chunk, row = divmod(step, _STEPS_AHEAD)
        if chunk != self._chunk:
            drawn = draw_mixing(
                self._augment, self._seed, chunk * _STEPS_AHEAD, _STEPS_AHEAD, self._image_size
            )
            table = torch.from_numpy(drawn)
            self._table = (
                table.pin_memory().to(self._device, non_blocking=True)
                if self._device.type == "cuda"
                else table
            )
            self._chunk = chunk
        return self._table[row]


def mix(
    name: str, images: torch.Tensor, labels: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix a batch.

    Args:
        name: `mixup`, `cutmix` or `ricap`.
        images: (B, C, H, W), in the order of the global batch; B is a multiple of the number of sources P.
        labels: (B,) int64.
        draws: a row of `draw_mixing`, on the same device.

    Returns:
        The images, in the same type and layout; the labels of their sources, (B, P) int64; and the sources' shares of the target, (P,).
    """
    sources = MIX_SOURCES[name]
    all_labels = torch.stack([_from_neighbour(labels, number, sources) for number in range(sources)], dim=1)
    return _METHODS[name](images, draws), all_labels, draws[:sources]


def _from_neighbour(batch: torch.Tensor, distance: int, group: int) -> torch.Tensor:
    """What stands DISTANCE further in the same group of neighbours, counted round; keeps the memory layout."""
    taken = torch.empty_like(batch)
    taken.unflatten(0, (-1, group)).copy_(batch.unflatten(0, (-1, group)).roll(-distance, 1))
    return taken


def _mixup(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018 (arXiv:1710.09412), equation 2: the weighted mean of two images."""
    return torch.lerp(_from_neighbour(images, 1, 2), images, draws[0].to(images.dtype))


def _cutmix(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Yun et al. 2019 (arXiv:1905.04899), section 3.1: a box from another image; its centre is anywhere, and the border clips it."""
    top, bottom, left, right = draws[2:]
    rows, columns = (torch.arange(extent, device=images.device) for extent in images.shape[2:])
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    return torch.where(inside, _from_neighbour(images, 1, 2), images)


def _ricap(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Takahashi et al. 2018 (arXiv:1811.09030), section 3: random crops of four images, patched into one."""
    height, width, row_shift, column_shift = *draws[4:6], *draws[6:].long().split(4)
    position, rows, columns = (
        torch.arange(extent, device=images.device) for extent in (len(images), *images.shape[2:])
    )
    part = 2 * (rows >= height).long()[:, None] + (columns >= width).long()
    sample = position[:, None, None] // 4 * 4 + (position[:, None, None] + part) % 4
    pixels = rearrange(images, "b c h w -> b h w c")[
        sample, rows[:, None] + row_shift[part], columns + column_shift[part]
    ]
    return torch.empty_like(images).copy_(rearrange(pixels, "b h w c -> b c h w"))


_METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mixup": _mixup,
    "cutmix": _cutmix,
    "ricap": _ricap,
}
