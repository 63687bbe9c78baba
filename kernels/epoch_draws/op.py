"""The draws of a whole epoch on the device: a Philox block per sample, cut into order key, crop, flip and Cutout box.

Shapes: N samples.

Sample i of stream s reads the block of Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key
(seed, epoch) and counter (i + 1, 0, 0, s), which is what numpy's `Philox(key, counter=(0, 0, 0, s))` gives as words 4 i to 4 i + 3.
Stream 0: word 0 is the sample's sort key, and the order of the epoch is the samples sorted by it. Stream 1: high and low half of
word 0 are crop_y and crop_x, bit 0 of word 1 is flip, the high half of word 2 and the low half of word 2 are cutout_y and cutout_x;
a half becomes an integer below a limit by multiply and shift.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

import torch
import triton
import triton.language as tl

_BLOCK = 256


@triton.jit
def _philox(sample, stream, key0, key1):
    """Words 0, 1 and 2 of each sample's block, uint64."""
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
    return c0, c1, c2


@triton.jit
def _below(half, LIMIT: tl.constexpr):
    return ((half * LIMIT) >> 32).to(tl.int32)


@triton.jit(do_not_specialize=["seed", "epoch"])
def _epoch_draws_kernel(
    keys_ptr,  # (N,) int64
    draws_ptr,  # (N, 5) int32
    num_samples,
    seed,
    epoch,
    CROPS: tl.constexpr,  # number of crop offsets, 2 * padding + 1
    FLIP: tl.constexpr,
    CUTOUT: tl.constexpr,
    CENTRE: tl.constexpr,  # pixels from the drawn position to the box's corner
    CORNERS_Y: tl.constexpr,  # number of drawn positions
    CORNERS_X: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < num_samples
    key, _, _ = _philox(sample, 0, seed, epoch)
    # the order is that of unsigned keys, torch sorts signed ones: turn the highest bit over
    tl.store(keys_ptr + sample, (key ^ 0x8000000000000000).to(tl.int64, bitcast=True), mask=inside)

    crop, flip, corner = _philox(sample, 1, seed, epoch)
    draws = draws_ptr + sample * 5
    low = 0xFFFFFFFF
    tl.store(draws, _below(crop >> 32, CROPS), mask=inside)
    tl.store(draws + 1, _below(crop & low, CROPS), mask=inside)
    tl.store(draws + 2, (flip & 1).to(tl.int32) * FLIP, mask=inside)
    if CUTOUT:
        tl.store(draws + 3, _below(corner >> 32, CORNERS_Y) - CENTRE, mask=inside)
        tl.store(draws + 4, _below(corner & low, CORNERS_X) - CENTRE, mask=inside)
    else:
        tl.store(draws + 3, tl.zeros_like(sample), mask=inside)
        tl.store(draws + 4, tl.zeros_like(sample), mask=inside)


def epoch_draws(
    seed: int,
    epoch: int,
    num_samples: int,
    image_size: tuple[int, int],
    *,
    padding: int,
    flip: bool,
    cutout: int,
    inside: bool,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order and augmentation of one epoch; nothing waits for the device.

    Args:
        seed, epoch: below 2**63.
        num_samples: N.
        image_size: height and width in pixels.
        padding: crop offsets are in [0, 2 * padding].
        flip: draw mirrors; else none.
        cutout: side of the box in pixels; 0: all boxes at 0.
        inside: the whole box is inside the image; else its centre is.
        device: where the draws are made; the current device.

    Returns:
        order (N,) int64, the sample ids in the order of the epoch, and draws (N, 5) int32 by sample id: crop_y, crop_x, flip,
        cutout_y, cutout_x.
    """
    height, width = image_size
    keys = torch.empty(num_samples, dtype=torch.int64, device=device)
    draws = torch.empty(num_samples, 5, dtype=torch.int32, device=device)
    corners = (height - cutout + 1, width - cutout + 1) if inside else (height, width)
    _epoch_draws_kernel[(triton.cdiv(num_samples, _BLOCK),)](
        keys,
        draws,
        num_samples,
        seed,
        epoch,
        2 * padding + 1,
        flip,
        cutout,
        0 if inside else cutout // 2,
        *corners,
        _BLOCK,
    )
    return keys.argsort(stable=True), draws
