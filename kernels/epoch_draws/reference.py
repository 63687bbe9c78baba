"""Define `epoch_draws` in plain Python integers: slow, and without the pitfalls of unsigned arithmetic."""

from typing import NamedTuple

import torch

_MASK = 2**64 - 1


class DrawRanges(NamedTuple):
    """The limits of the draws.

    Attributes:
        image_size: height and width in pixels.
        padding: crop offsets are in [0, 2 * padding].
        flip: True: draw flips; False: no sample is flipped; "alternating": draw the flips of epoch 0, and
            flip a sample in every other epoch.
        cutout: side of the Cutout box in pixels; 0: all boxes are at 0.
        inside: the whole box is inside the image; False: only its centre is.
        jitter: draw changes of brightness and contrast, each uniform over all int32.
    """

    image_size: tuple[int, int]
    padding: int
    flip: bool | str
    cutout: int
    inside: bool
    jitter: bool = False


def epoch_draws_reference(
    seed: int, epoch: int, num_samples: int, ranges: DrawRanges
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order and the draws of one epoch, on the CPU. Arguments as of `epoch_draws`."""
    keys = [philox4x64((sample + 1, 0, 0, 0), (seed, epoch))[0] for sample in range(num_samples)]
    draws = []
    for sample in range(num_samples):
        crop, mirror, box, light = philox4x64((sample + 1, 0, 0, 1), (seed, epoch))
        if ranges.flip == "alternating":
            mirror = philox4x64((sample + 1, 0, 0, 1), (seed, 0))[1] + epoch
        draws.append(_draw((crop, mirror, box, light), ranges))
    order = sorted(range(num_samples), key=lambda sample: keys[sample])
    return torch.tensor(order), torch.tensor(draws, dtype=torch.int32)


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return one block of Philox4x64-10 (Salmon et al. 2011, section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1 = (product1 >> 64) ^ c1 ^ k0, product1 & _MASK
        c2, c3 = (product0 >> 64) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c0, c1, c2, c3


def _draw(words: tuple[int, int, int, int], ranges: DrawRanges) -> list[int]:
    """Return crop_y, crop_x, flip, cutout_y, cutout_x of one sample, and shift and change if drawn."""
    (height, width), padding, flip, cutout, inside, jitter = ranges
    crop, mirror, box, light = words

    def below(half: int, limit: int) -> int:
        return half * limit >> 32

    def corner(half: int, extent: int) -> int:
        if not cutout:
            return 0
        return below(half, extent - cutout + 1) if inside else below(half, extent) - cutout // 2

    def halves(word: int) -> tuple[int, int]:
        return word >> 32, word & 0xFFFFFFFF

    crop_y, crop_x = (below(half, 2 * padding + 1) for half in halves(crop))
    box_y, box_x = halves(box)
    row = [crop_y, crop_x, (mirror & 1) * bool(flip), corner(box_y, height), corner(box_x, width)]
    return row + [half - (half >> 31 << 32) for half in halves(light)] * jitter
