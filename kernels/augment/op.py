"""Gather, crop, flip, normalise, brighten, cut out and cast a batch of small images in one kernel launch.

Shapes: N images in the data set, B samples in the call, H rows, W columns, C channels.

The draws are made elsewhere. This op only applies them, so it gives the same pixels as every other loader.
For one sample with the draws (crop_y, crop_x, flip, cutout_y, cutout_x, shift, change):

1. crop: an H×W window of the image with a border of `padding` pixels on each side, black (0) or the image
   mirrored at its edges; (crop_y, crop_x) is its top-left corner in the padded image;
2. flip: the window is mirrored left to right if `flip` is not 0;
3. normalisation: `(pixel - 255 * mean) * (1 / (255 * std))` in float32;
4. brightness and contrast, if one of the settings is not 0: `(y + b) * (1 + c)` in float32, with
   b = shift * brightness / 2**31 and c = change * contrast / 2**31 (as Hive's cifar10-speedrun; its numbers
   are uniform in [-brightness, brightness] and [-contrast, contrast] too);
5. Cutout (DeVries and Taylor 2017, arXiv:1708.04552, section 3): the square of side `cutout` with top-left
   corner (cutout_y, cutout_x) in the output, clipped by the border, is set to the normalised
   `rint(255 * mean)`: brightness and contrast do not change the box;
6. the cast to the output's dtype.

A small batch takes as long as its launch on the host. So a call takes any number of samples: augment several
batches, or the whole epoch, at once and hand out slices.
"""

import torch

from kernels.augment.forward import launch
from kernels.augment.reference import Augmentation


def augment(
    images: torch.Tensor,
    order: torch.Tensor,
    draws: torch.Tensor,
    augmentation: Augmentation,
    *,
    count: int,
    start: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the augmented images of `order[start : start + count]`, in one launch on the current stream.

    Everything stays on the device of `images`, which must be the current device, and nothing waits for it.
    The first call for a data set compiles the kernel and copies its constants to the device: make it before a
    CUDA graph is captured.

    Args:
        images: (N, H, W, C) uint8, contiguous; the whole data set.
        order: (M,) int64 or int32, contiguous, such as the order of an epoch; sample numbers in [0, N), which
            are not checked.
        draws: (N, 5) int32, contiguous; crop_y, crop_x, flip, cutout_y, cutout_x of each sample, by sample
            number. (N, 7) with brightness or contrast: shift and change follow.
        augmentation: the settings that all samples share.
        count: number of samples to take from `order`: a batch, several batches or all.
        start: position in `order` of the first sample.
        out: if given, the result is written here and returned: (count, C, H, W), channels_last, of the dtype
            of the result, on the device of `images`.

    Returns:
        (count, C, H, W) of `augmentation.dtype`, channels_last.

    Raises:
        ValueError: a shape, dtype or memory layout is not as stated, or `order` ends before `start + count`.
    """
    _check(images, draws, augmentation)
    if start < 0 or count < 1 or start + count > order.numel() or not order.is_contiguous():
        raise ValueError(
            f"cannot take {count} samples from position {start} of an order of {order.numel()}, "
            "which must be contiguous"
        )
    _, height, width, channels = images.shape
    shape, dtype, channels_last = (count, channels, height, width), augmentation.dtype, torch.channels_last
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=images.device, memory_format=channels_last)
    elif out.shape != shape or out.dtype is not dtype or not out.is_contiguous(memory_format=channels_last):
        raise ValueError(
            f"out must be channels_last {dtype} {shape}, "
            f"not {out.dtype} {tuple(out.shape)} with strides {out.stride()}"
        )
    launch(images, order, draws, augmentation, start, out)
    return out


def _check(images: torch.Tensor, draws: torch.Tensor, augmentation: Augmentation) -> None:
    """Raise a ValueError if images, draws or the number of means is wrong."""
    num_images, height, width, channels = images.shape
    if augmentation.reflect and augmentation.padding >= min(height, width):
        raise ValueError(
            f"a reflected border of {augmentation.padding} pixels needs images larger than that, not "
            f"{height}x{width}"
        )
    if images.dtype is not torch.uint8 or not images.is_contiguous():
        raise ValueError(
            f"images must be contiguous uint8 (N, H, W, C), not {images.dtype} with strides {images.stride()}"
        )
    shape = num_images, 7 if augmentation.jitters else 5
    if draws.shape != shape or draws.dtype is not torch.int32 or not draws.is_contiguous():
        raise ValueError(f"draws must be contiguous int32 {shape}, not {draws.dtype} {tuple(draws.shape)}")
    num_means, num_stds = len(augmentation.mean), len(augmentation.std)
    if num_means != channels or num_stds != channels:
        raise ValueError(
            f"images have {channels} channels, "
            f"but there are {num_means} means and {num_stds} standard deviations"
        )
