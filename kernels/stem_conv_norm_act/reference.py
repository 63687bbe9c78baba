"""Plain PyTorch definition of the op in `stem_conv_norm_act.py`, and the CPU implementation of its two operators.

Shapes: B images, C channels, H rows, W columns, O output channels, K taps (see `stem_tiles.py`). Arithmetic is in float32 or wider.
"""

import torch
from torch.nn import functional

from kernels.batch_norm_act import reference as batch_norm_act_reference
from kernels.stem_conv.reference import stem_conv_weight_gradient_reference


def stem_conv_norm_act_reference(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(conv2d(images, weight))), rounded once; for the arguments see `kernels.stem_conv_norm_act.op`."""
    x = _convolution(images, weight, images.dtype)
    norm = (running_mean, running_var, norm_weight, norm_bias)
    z = functional.batch_norm(x, *norm, training=True, momentum=momentum, eps=eps)
    return z.relu().to(images.dtype)


def forward_reference(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    dtype: torch.dtype,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y of `dtype`, what backward needs of batch norm's statistics, (2, O): mean and 1 / standard deviation, and the moments.

    Moments, (K, K): the mean over the pixels of the products of two taps.
    """
    x = _convolution(images, weight, dtype)
    y, statistics, _ = batch_norm_act_reference.forward_reference(
        x, None, norm_weight, norm_bias, running_mean, running_var, True, momentum, eps
    )
    taps = _taps(images.to(dtype))
    with torch.autocast(images.device.type, enabled=False):
        moments = taps.T @ taps / len(taps)
    return y.to(dtype), statistics, moments


def backward_reference(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    statistics: torch.Tensor,
    moments: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by the convolution's weight and by batch norm's weight and bias.

    `gradient` and `second_gradient` are those of two uses of y. The moments are not used.
    """
    x = _convolution(images, weight, gradient.dtype)
    dx, norm_dweight, norm_dbias, _ = batch_norm_act_reference.backward_reference(
        gradient, second_gradient, x, None, norm_weight, norm_bias, statistics, True, False
    )
    return (
        stem_conv_weight_gradient_reference(dx, images.to(gradient.dtype), weight),
        norm_dweight,
        norm_dbias,
    )


def _convolution(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Images and weight are rounded to `dtype`, and their convolution is not."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        return functional.conv2d(images.to(dtype).to(wide), weight.to(dtype).to(wide), padding=1)


def _taps(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) → (B·H·W, K), with the tap that is 1 after those of the window, and zeros up to a power of two, at least 16."""
    windows = functional.unfold(images.to(torch.promote_types(images.dtype, torch.float32)), 3, padding=1)
    taps = windows.unflatten(1, (-1, 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    taps = functional.pad(taps, (0, 1), value=1.0)
    num_taps = max(16, 1 << (taps.shape[1] - 1).bit_length())
    return functional.pad(taps, (0, num_taps - taps.shape[1]))
