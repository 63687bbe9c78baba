"""Run the augmentation: one launch, for any number of samples."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from functools import lru_cache

import torch
import triton
import triton.language as tl

from kernels.augment.reference import Augmentation

# Output elements of a program: 8 for each of 128 threads, which is a 16-byte store in half precision.
_BLOCK = 1024


@triton.jit(do_not_specialize=["start"])
def _augment_kernel(  # noqa: PLR0913
    images_ptr,  # (N, H, W, C) uint8
    order_ptr,  # (M,) int64 or int32
    draws_ptr,  # (N, 5) int32, or (N, 7) with JITTER
    constants_ptr,  # (3 C + 2,) float32: 255 * mean, 1 / (255 * std), Cutout fill; units of the jitter
    out_ptr,  # (B, H, W, C) in memory
    start,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDING: tl.constexpr,
    CUTOUT: tl.constexpr,
    REFLECT: tl.constexpr,
    JITTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    IMAGE_SIZE: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    slot = tl.program_id(0).to(tl.int64)  # int64: N * H * W * C passes 2**31 at 14,000 images of 224×224
    sample = tl.load(order_ptr + start + slot).to(tl.int64)
    draws = draws_ptr + sample * (7 if JITTER else 5)
    top, left, flip = _crop_and_flip(draws, PADDING)

    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_output = element < IMAGE_SIZE
    channel = element % CHANNELS
    x = element // CHANNELS % WIDTH
    y = element // (CHANNELS * WIDTH)
    in_box = _in_box(draws, y, x, CUTOUT)

    source_y = _mirror_border(y + top, HEIGHT, REFLECT)
    source_x = _mirror_border(tl.where(flip, WIDTH - 1 - x, x) + left, WIDTH, REFLECT)
    visible = in_output & (source_y >= 0) & (source_y < HEIGHT)
    visible = visible & (source_x >= 0) & (source_x < WIDTH) & ~in_box
    source = images_ptr + sample * IMAGE_SIZE + ((source_y * WIDTH + source_x) * CHANNELS + channel)
    pixel = tl.load(source, mask=visible, other=0).to(tl.float32)
    normalised = _fill_and_normalise(pixel, in_box, channel, constants_ptr, CHANNELS)
    if JITTER:
        jittered = _jitter(normalised, draws, constants_ptr + 3 * CHANNELS)
        normalised = tl.where(in_box, normalised, jittered)
    tl.store(out_ptr + slot * IMAGE_SIZE + element, normalised.to(out_ptr.dtype.element_ty), mask=in_output)


@triton.jit
def _crop_and_flip(draws, PADDING: tl.constexpr):
    """Return the crop's corner in the image without its border, and True if the crop is mirrored."""
    top = tl.load(draws) - PADDING
    left = tl.load(draws + 1) - PADDING
    return top, left, tl.load(draws + 2) != 0


@triton.jit
def _mirror_border(position, SIZE: tl.constexpr, REFLECT: tl.constexpr):
    """Return the position inside that a position in a reflected border shows; the edge is not repeated."""
    if REFLECT:
        position = tl.where(position < 0, -position, position)
        position = tl.where(position >= SIZE, 2 * (SIZE - 1) - position, position)
    return position


@triton.jit
def _in_box(draws, y, x, CUTOUT: tl.constexpr):
    """Return True for the pixels in the Cutout box."""
    box_y = y - tl.load(draws + 3)
    box_x = x - tl.load(draws + 4)
    return (box_y >= 0) & (box_y < CUTOUT) & (box_x >= 0) & (box_x < CUTOUT)


@triton.jit
def _fill_and_normalise(pixel, in_box, channel, constants_ptr, CHANNELS: tl.constexpr):
    """Return the normalised pixels, with the fill in the Cutout box.

    The constants are selected among scalars: loading those of the channel for each element would take four
    loads in place of one.
    """
    mean = tl.load(constants_ptr)
    inverse_std = tl.load(constants_ptr + CHANNELS)
    fill = tl.load(constants_ptr + 2 * CHANNELS)
    for c in tl.static_range(1, CHANNELS):
        mean = tl.where(channel == c, tl.load(constants_ptr + c), mean)
        inverse_std = tl.where(channel == c, tl.load(constants_ptr + CHANNELS + c), inverse_std)
        fill = tl.where(channel == c, tl.load(constants_ptr + 2 * CHANNELS + c), fill)
    pixel = tl.where(in_box, fill, pixel)
    return (pixel - mean) * inverse_std


@triton.jit
def _jitter(normalised, draws, units_ptr):
    """Return the pixels with the brightness and the contrast that one sample's draws give."""
    shift = tl.load(draws + 5).to(tl.float32) * tl.load(units_ptr)
    change = tl.load(draws + 6).to(tl.float32) * tl.load(units_ptr + 1)
    return (normalised + shift) * (1 + change)


@lru_cache(maxsize=16)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], ranges: tuple[float, float], device: torch.device
) -> torch.Tensor:
    """Return the (3 C + 2,) float32 constants of the kernel, copied to the device once for each setting."""
    mean255 = 255 * torch.tensor(mean, dtype=torch.float64)
    std255 = 255 * torch.tensor(std, dtype=torch.float64)
    units = torch.tensor(ranges, dtype=torch.float64) / 2**31
    return torch.cat([mean255.float(), 1 / std255.float(), mean255.round().float(), units.float()]).to(device)


def launch(
    images: torch.Tensor,
    order: torch.Tensor,
    draws: torch.Tensor,
    augmentation: Augmentation,
    start: int,
    out: torch.Tensor,
) -> None:
    """Write the augmented images of the samples `order[start : start + len(out)]` to `out`."""
    ranges = augmentation.brightness, augmentation.contrast
    constants = _constants(tuple(augmentation.mean), tuple(augmentation.std), ranges, images.device)
    tensors = images, order, draws, constants, out
    sizes = *images.shape[1:], augmentation.padding, augmentation.cutout
    _augment_kernel[len(out), triton.cdiv(images[0].numel(), _BLOCK)](
        *tensors,
        start,
        *sizes,
        augmentation.reflect,
        augmentation.jitters,
        _BLOCK,
        num_warps=4,
        enable_fp_fusion=False,  # the arithmetic of the definition, bit for bit
    )
