"""Gives random bits as a pure function of (seed, epoch, sample id): the Philox generator of the data path.

Sample i reads block i of a counter-based generator (Philox4x64-10; Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3") whose key is (seed, epoch). So the draws do not depend on the loader, on the
number of processes or threads, or on the step at which a run was interrupted.
"""

from collections.abc import Callable

import numpy as np
from einops import rearrange

# Streams of one (seed, epoch): the highest word of the Philox counter. Stream 3 is that of
# `training/mixing.py`.
ORDER, PADDED_CROPS, RESIZED_CROPS, ERASING, TRIVIAL = 0, 1, 2, 4, 5
_WORDS = 4  # 64-bit words in a Philox block
_FACTORS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)


def philox_blocks(seed: int, epoch: int, stream: int, count: int, first: int = 0) -> np.ndarray:
    """Return Philox blocks of a stream, from block FIRST on: (count, 4) uint64."""
    generator = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([first, 0, 0, stream], np.uint64)
    )
    return rearrange(generator.random_raw(count * _WORDS), "(n w) -> n w", w=_WORDS)


def philox_at(seed: int, epochs: np.ndarray, stream: int, blocks: np.ndarray) -> np.ndarray:
    """Return single Philox blocks, each of its own epoch: (B, 4) uint64.

    They are those of `philox_blocks`, which is faster for many blocks in a row.

    Args:
        seed: of the run.
        epochs: (B,) whole numbers from 0.
        stream: of the draws.
        blocks: (B,) whole numbers from 0.
    """
    c0, c2 = blocks.astype(np.uint64) + np.uint64(1), np.zeros(len(blocks), np.uint64)  # numpy counts first
    c1, c3 = np.zeros_like(c0), np.full_like(c0, stream)
    k0, k1 = np.full_like(c0, seed), epochs.astype(np.uint64)
    for _ in range(10):
        (high0, low0), (high2, low2) = _multiply(c0, _FACTORS[0]), _multiply(c2, _FACTORS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return np.stack([c0, c1, c2, c3], axis=1)


def _multiply(a: np.ndarray, b: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Return the high and the low 64 bits of products of 64-bit numbers."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_high, a_low, b_high, b_low = a >> half, a & mask, b >> half, b & mask
    middle = a_high * b_low + ((a_low * b_low) >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half), a * b


def below(bits: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Return uniform int32 in [0, limit) from 32 random bits in uint64.

    The method is multiply and shift, with a bias below limit / 2**32.
    """
    return ((bits * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int32)


def signed(bits: np.ndarray) -> np.ndarray:
    """Return uniform int32 from 32 random bits in uint64: the same bits, read as a number with a sign."""
    return bits.astype(np.uint32).view(np.int32)


def draw_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Draw the order of an epoch: (N,) int64 sample ids, sorted by a random 64-bit key each."""
    return np.argsort(philox_blocks(seed, epoch, ORDER, num_samples)[:, 0], kind="stable")


def flips(
    flip: bool | str, epoch: int | np.ndarray, bits: np.ndarray, first_bits: Callable[[], np.ndarray]
) -> np.ndarray:
    """Draw the samples to mirror: (N,) bool.

    Args:
        flip: `augment.flip`.
        epoch: 0 for the first; or (N,), one for each sample.
        bits: (N,) unsigned, of which the lowest bit is used: the sample's bits of this epoch.
        first_bits: returns the same of the first epoch, which is needed for `alternating` only.
    """
    if flip == "alternating":
        bits = first_bits() ^ np.asarray(epoch % 2, bits.dtype)
    return (bits & bits.dtype.type(1)).astype(bool) & bool(flip)


def named_generator(seed: int, name: str) -> np.random.Generator:
    """Return an independent generator for each (seed, name).

    Args:
        seed: the run's seed.
        name: at most 8 ASCII letters. They fill the second word of the key, which is the epoch in the draws
            of an epoch: no run lasts so many epochs.
    """
    word = int.from_bytes(name.encode("ascii"), "big")
    return np.random.Generator(np.random.Philox(key=np.array([seed, word], np.uint64)))
