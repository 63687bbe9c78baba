"""Define `whitening_stem` in plain PyTorch, and implement its two operators on the CPU.

Shapes: B images, C channels, H rows, W columns, O output channels. Arithmetic is in float32 or wider.
"""

import torch
from torch.nn import functional

from kernels.batch_norm_act.reference import slope_reference


def whitening_stem_reference(
    images: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    dtype: torch.dtype | None = None,
    channels: int | None = None,
) -> torch.Tensor:
    """Return gelu(conv2d(images, weight, bias)), (B, channels, H - 1, W - 1) of `dtype`, channels_last.

    Images and weight are first cast to `dtype` (default: that of the images). The result is rounded once. The
    channels beyond O are 0; by default there are none.
    """
    dtype = dtype or images.dtype
    y = functional.gelu(_under_gelu(images, weight, bias, dtype)).to(dtype)
    y = functional.pad(y, (0, 0, 0, 0, 0, (channels or len(weight)) - len(weight)))
    return y.contiguous(memory_format=torch.channels_last)


def bias_gradient_reference(
    dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return the gradient by the bias, (O,) of its dtype; dy is (B, O or more, H - 1, W - 1)."""
    dy = dy[:, : len(weight)]
    z = _under_gelu(images, weight, bias, dy.dtype)
    return (dy.to(z.dtype) * slope_reference(z, "gelu")).sum((0, 2, 3)).to(bias.dtype)


def _under_gelu(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(images.device.type, enabled=False):  # autocast would round operands and result
        return functional.conv2d(images.to(dtype).to(wide), weight.to(dtype).to(wide), bias.to(wide))
