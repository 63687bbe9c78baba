"""Define `stem_conv` in plain PyTorch, and implement its two operators on the CPU.

Shapes: B images, C channels, H rows, W columns, O output channels.
"""

import torch
from torch.nn import functional


def stem_conv_reference(
    images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return the convolution of images (B, C, H, W) and weight (O, C, 3, 3) with a border of zeros.

    Images and weight are first cast to `dtype` (default: that of the images). The result is (B, O, H, W) of
    `dtype`, channels_last.
    """
    dtype = dtype or images.dtype
    y = functional.conv2d(images.to(dtype), weight.to(dtype), padding=1)
    return y.contiguous(memory_format=torch.channels_last)


def stem_conv_weight_gradient_reference(
    dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Return the gradient by the weight, like the weight in shape, dtype and strides; dy is (B, O, H, W).

    The gradient of a tap is the product of dy with the images, shifted by the place of the tap. Arithmetic is
    in float32 or wider.
    """
    height, width = images.shape[2:]
    wide = torch.promote_types(dy.dtype, torch.float32)
    padded = functional.pad(images.to(dy.dtype).to(wide), (1, 1, 1, 1))
    shifted = torch.stack([padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)])
    with torch.autocast(dy.device.type, enabled=False):  # autocast would round the operands of the product
        gradient = torch.einsum("bohw,tbchw->oct", dy.to(wide), shifted)
    return torch.empty_like(weight).copy_(gradient.reshape(weight.shape))
