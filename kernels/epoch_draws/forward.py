"""Run the draws: one launch, with one Philox block for each sample and stream."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

from kernels.epoch_draws.reference import DrawRanges
from kernels.tiles import FP_FUSION

_BLOCK = 256


@triton.jit(do_not_specialize=["seed", "epoch"])
def _epoch_draws_kernel(  # noqa: PLR0913
    keys_ptr,  # (N,) int64
    draws_ptr,  # (N, 5) int32, or (N, 7) with JITTER
    num_samples,
    seed,
    epoch,
    CROPS: tl.constexpr,  # number of crop offsets, 2 * padding + 1
    FLIP: tl.constexpr,  # 0: none, 1: drawn in each epoch, 2: alternating
    CUTOUT: tl.constexpr,
    CENTRE: tl.constexpr,  # pixels from the drawn position to the box's corner
    CORNERS_Y: tl.constexpr,  # number of drawn positions
    CORNERS_X: tl.constexpr,
    JITTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < num_samples
    key, _, _, _ = _philox(sample, 0, seed, epoch)
    # The order is that of unsigned keys, but torch sorts signed ones: flip the highest bit.
    tl.store(keys_ptr + sample, (key ^ 0x8000000000000000).to(tl.int64, bitcast=True), mask=inside)

    crop, flip, corner, light = _philox(sample, 1, seed, epoch)
    if FLIP == 2:
        _, first, _, _ = _philox(sample, 1, seed, epoch * 0)
        flip = first ^ epoch.to(tl.uint64)
    draws = draws_ptr + sample * (7 if JITTER else 5)
    low = 0xFFFFFFFF
    tl.store(draws, _below(crop >> 32, CROPS), mask=inside)
    tl.store(draws + 1, _below(crop & low, CROPS), mask=inside)
    tl.store(draws + 2, (flip & 1).to(tl.int32) * (FLIP > 0), mask=inside)
    if CUTOUT:
        tl.store(draws + 3, _below(corner >> 32, CORNERS_Y) - CENTRE, mask=inside)
        tl.store(draws + 4, _below(corner & low, CORNERS_X) - CENTRE, mask=inside)
    else:
        tl.store(draws + 3, tl.zeros_like(sample), mask=inside)
        tl.store(draws + 4, tl.zeros_like(sample), mask=inside)
    if JITTER:  # a conversion to int32 keeps the lowest 32 bits
        tl.store(draws + 5, (light >> 32).to(tl.int32), mask=inside)
        tl.store(draws + 6, light.to(tl.int32), mask=inside)


@triton.jit
def _philox(sample, stream, key0, key1):
    """Return the four words of each sample's block, uint64."""
    c0 = sample.to(tl.uint64) + 1
    c1 = tl.zeros_like(c0)
    c2 = tl.zeros_like(c0)
    c3 = tl.zeros_like(c0) + stream
    key0 = tl.zeros_like(c0) + key0.to(tl.uint64)
    key1 = tl.zeros_like(c0) + key1.to(tl.uint64)
    multiplier0 = tl.full(c0.shape, 0xD2E7470EE14C6C93, tl.uint64)
    multiplier1 = tl.full(c0.shape, 0xCA5A826395121157, tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, multiplier0), c0 * multiplier0
        high1, low1 = tl.umulhi(c2, multiplier1), c2 * multiplier1
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0 += 0x9E3779B97F4A7C15
        key1 += 0xBB67AE8584CAA73B
    return c0, c1, c2, c3


@triton.jit
def _below(half, LIMIT: tl.constexpr):
    """Return an integer below the limit from the 32 bits of half a word."""
    return ((half * LIMIT) >> 32).to(tl.int32)


def launch(
    seed: int, epoch: int, num_samples: int, ranges: DrawRanges, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sort keys of the samples, (N,) int64, and their draws, (N, 5) or (N, 7) int32."""
    (height, width), padding, flip, cutout, inside, jitter = ranges
    keys = torch.empty(num_samples, dtype=torch.int64, device=device)
    draws = torch.empty(num_samples, 7 if jitter else 5, dtype=torch.int32, device=device)
    corners = (height - cutout + 1, width - cutout + 1) if inside else (height, width)
    mode = 2 if flip == "alternating" else int(flip)
    sizes = 2 * padding + 1, mode, cutout, 0 if inside else cutout // 2, *corners, jitter
    grid = (triton.cdiv(num_samples, _BLOCK),)
    _epoch_draws_kernel[grid](keys, draws, num_samples, seed, epoch, *sizes, _BLOCK, **FP_FUSION)
    return keys, draws
