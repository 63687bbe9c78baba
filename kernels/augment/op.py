"""Gather, random crop, flip, Cutout, normalisation and cast of a batch of small images in one kernel launch.

Shapes: N images in the data set, B samples in the call, H rows, W columns, C channels.

The draws are made elsewhere; this op only applies them, so it gives the same pixels as every other loader. For one sample with
the draws (crop_y, crop_x, flip, cutout_y, cutout_x):

1. crop: an H×W window of the image padded with black (0) by `padding` on each side; (crop_y, crop_x) is its top-left corner in the
   padded image;
2. flip: the window is mirrored left to right where `flip` is not 0;
3. Cutout (DeVries and Taylor 2017, arXiv:1708.04552, section 3): the square of side `cutout` with top-left corner
   (cutout_y, cutout_x) in the output, clipped by the border, is set to `rint(255 * mean)`;
4. normalisation: `(pixel - 255 * mean) * (1 / (255 * std))` in float32, then the cast to the output's dtype.

The time of a small batch is the time of the launch on the host. A call therefore takes any number of samples: augment several
batches, or the whole epoch, at once and hand out slices.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# (Triton's annotations describe neither the language inside a kernel nor the options of a launch.)

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

_BLOCK = 1024  # output elements of a program: 8 for each of 128 threads, which is a 16-byte store in half precision


@triton.jit(do_not_specialize=["start"])
def _augment_kernel(
    images_ptr,  # (N, H, W, C) uint8
    order_ptr,  # (M,) int64 or int32
    draws_ptr,  # (N, 5) int32
    constants_ptr,  # (3, C) float32: 255 * mean, 1 / (255 * std), Cutout fill
    out_ptr,  # (B, H, W, C) in memory
    start,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDING: tl.constexpr,
    CUTOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    IMAGE_SIZE: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    slot = tl.program_id(0).to(tl.int64)  # int64: N * H * W * C passes 2**31 at 14,000 images of 224×224
    sample = tl.load(order_ptr + start + slot).to(tl.int64)
    draws = draws_ptr + sample * 5
    top = tl.load(draws) - PADDING
    left = tl.load(draws + 1) - PADDING
    flip = tl.load(draws + 2) != 0

    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    in_output = element < IMAGE_SIZE
    channel = element % CHANNELS
    x = element // CHANNELS % WIDTH
    y = element // (CHANNELS * WIDTH)

    box_y = y - tl.load(draws + 3)
    box_x = x - tl.load(draws + 4)
    in_box = (box_y >= 0) & (box_y < CUTOUT) & (box_x >= 0) & (box_x < CUTOUT)

    source_y = y + top
    source_x = tl.where(flip, WIDTH - 1 - x, x) + left
    visible = (
        in_output & (source_y >= 0) & (source_y < HEIGHT) & (source_x >= 0) & (source_x < WIDTH) & ~in_box
    )
    source = images_ptr + sample * IMAGE_SIZE + ((source_y * WIDTH + source_x) * CHANNELS + channel)
    pixel = tl.load(source, mask=visible, other=0).to(tl.float32)

    # Selects among scalars: loading the channel's constants for each element would take four loads where there is one.
    mean = tl.load(constants_ptr)
    inverse_std = tl.load(constants_ptr + CHANNELS)
    fill = tl.load(constants_ptr + 2 * CHANNELS)
    for c in tl.static_range(1, CHANNELS):
        mean = tl.where(channel == c, tl.load(constants_ptr + c), mean)
        inverse_std = tl.where(channel == c, tl.load(constants_ptr + CHANNELS + c), inverse_std)
        fill = tl.where(channel == c, tl.load(constants_ptr + 2 * CHANNELS + c), fill)
    pixel = tl.where(in_box, fill, pixel)
    normalised = (pixel - mean) * inverse_std
    tl.store(out_ptr + slot * IMAGE_SIZE + element, normalised.to(out_ptr.dtype.element_ty), mask=in_output)


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return the (3, C) float32 constants of the kernel; made once for each data set and device, with a copy to the device."""
    mean255 = 255 * torch.tensor(mean, dtype=torch.float64)
    std255 = 255 * torch.tensor(std, dtype=torch.float64)
    return torch.stack([mean255.float(), 1 / std255.float(), mean255.round().float()]).to(device)


def augment(
    images: torch.Tensor,
    order: torch.Tensor,
    draws: torch.Tensor,
    *,
    count: int,
    start: int = 0,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int,
    cutout: int,
    dtype: torch.dtype = torch.float16,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the augmented images of the samples `order[start : start + count]`, in one launch on the current stream.

    Everything stays on the device of `images`, which must be the current device, and nothing waits for it. The first call for a
    data set compiles the kernel and copies its constants to the device: make it before a CUDA graph is captured.

    Args:
        images: (N, H, W, C) uint8, contiguous; the whole data set.
        order: (M,) int64 or int32, contiguous; sample numbers in [0, N), which are not checked. An epoch's order, say.
        draws: (N, 5) int32, contiguous; crop_y, crop_x, flip, cutout_y, cutout_x of each sample, by sample number.
        count: how many samples to take from `order`: a batch, several batches or all.
        start: position in `order` of the first sample.
        mean: of each channel, as a fraction of 1.
        std: of each channel, as a fraction of 1.
        padding: black pixels added to each side before the crop.
        cutout: side of the Cutout box in pixels; 0 for no box.
        dtype: of the result: float16, bfloat16 or float32.
        out: written to and returned where given: (count, C, H, W) of `dtype`, channels_last, on the device of `images`.

    Returns:
        (count, C, H, W) of `dtype`, channels_last.

    Raises:
        ValueError: a shape, dtype or memory layout is not as stated, or `order` ends before `start + count`.
    """
    num_images, height, width, channels = images.shape
    if images.dtype is not torch.uint8 or not images.is_contiguous():
        raise ValueError(
            f"images must be contiguous uint8 (N, H, W, C), not {images.dtype} with strides {images.stride()}"
        )
    if draws.shape != (num_images, 5) or draws.dtype is not torch.int32 or not draws.is_contiguous():
        raise ValueError(
            f"draws must be contiguous int32 ({num_images}, 5), not {draws.dtype} {tuple(draws.shape)}"
        )
    if start < 0 or count < 1 or start + count > order.numel() or not order.is_contiguous():
        raise ValueError(
            f"cannot take {count} samples from position {start} of an order of {order.numel()}, which must be contiguous"
        )
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"images have {channels} channels, but there are {len(mean)} means and {len(std)} standard deviations"
        )
    shape = (count, channels, height, width)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    elif (
        out.shape != shape
        or out.dtype is not dtype
        or not out.is_contiguous(memory_format=torch.channels_last)
    ):
        raise ValueError(
            f"out must be channels_last {dtype} {shape}, not {out.dtype} {tuple(out.shape)} with strides {out.stride()}"
        )

    grid = (count, triton.cdiv(height * width * channels, _BLOCK))
    constants = _constants(tuple(mean), tuple(std), images.device)
    _augment_kernel[grid](
        images,
        order,
        draws,
        constants,
        out,
        start,
        height,
        width,
        channels,
        padding,
        cutout,
        _BLOCK,
        num_warps=4,
        enable_fp_fusion=False,  # the arithmetic of the definition, bit for bit
    )
    return out
