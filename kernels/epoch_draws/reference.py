"""The definition of `epoch_draws` in plain Python integers: slow, and without the pitfalls of unsigned arithmetic."""

import torch

_MASK = 2**64 - 1


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Philox4x64-10 (Salmon et al. 2011, section 3.3)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * 0xD2E7470EE14C6C93, c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = (
            (product1 >> 64) ^ c1 ^ k0,
            product1 & _MASK,
            (product0 >> 64) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return c0, c1, c2, c3


def epoch_draws_reference(
    seed: int,
    epoch: int,
    num_samples: int,
    image_size: tuple[int, int],
    *,
    padding: int,
    flip: bool,
    cutout: int,
    inside: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `epoch_draws`, on the CPU."""
    height, width = image_size

    def below(half: int, limit: int) -> int:
        return half * limit >> 32

    def corner(half: int, extent: int) -> int:
        if not cutout:
            return 0
        return below(half, extent - cutout + 1) if inside else below(half, extent) - cutout // 2

    keys, draws = [], []
    for sample in range(num_samples):
        keys.append(philox4x64((sample + 1, 0, 0, 0), (seed, epoch))[0])
        crop, mirror, box, _ = philox4x64((sample + 1, 0, 0, 1), (seed, epoch))
        high, low = (lambda word: word >> 32), (lambda word: word & 0xFFFFFFFF)
        crops = 2 * padding + 1
        row = [
            below(high(crop), crops),
            below(low(crop), crops),
            (mirror & 1) * flip,
            corner(high(box), height),
            corner(low(box), width),
        ]
        draws.append(row)
    order = sorted(range(num_samples), key=lambda sample: keys[sample])
    return torch.tensor(order), torch.tensor(draws, dtype=torch.int32)
