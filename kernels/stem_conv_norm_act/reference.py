"""Define `stem_conv_norm_act` in plain PyTorch, and implement its two operators on the CPU.

Shapes: B images, C channels, H rows, W columns, O output channels, K taps (see `kernels/stem_tiles.py`).
Arithmetic is in float32 or wider.
"""

import torch
from torch.nn import functional

from kernels.arguments import Norm
from kernels.batch_norm_act import reference as batch_norm_act_reference
from kernels.stem_conv.reference import stem_conv_weight_gradient_reference


def stem_conv_norm_act_reference(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(conv2d(images, weight))), rounded once. Arguments as of `stem_conv_norm_act`."""
    x = _convolution(images, weight, images.dtype)
    return batch_norm_act_reference.batch_norm_act_reference(x, norm, None, "relu", momentum, eps).to(
        images.dtype
    )


def forward_reference(  # noqa: PLR0913
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
    """Return y of `dtype`, the statistics that backward needs, and the moments.

    The statistics are (2, O): mean and 1 / standard deviation. The moments, (K, K), are the means over the
    pixels of the products of two taps.
    """
    x = _convolution(images, weight, dtype)
    y, statistics, _ = batch_norm_act_reference.forward_reference(
        x, None, norm_weight, norm_bias, running_mean, running_var, "relu", momentum, eps
    )
    taps = _taps(images.to(dtype))
    with torch.autocast(images.device.type, enabled=False):
        moments = taps.T @ taps / len(taps)
    return y.to(dtype), statistics, moments


def backward_reference(  # noqa: PLR0913
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
        gradient, second_gradient, x, None, None, norm_weight, norm_bias, statistics, "relu", False
    )
    return (
        stem_conv_weight_gradient_reference(dx, images.to(gradient.dtype), weight),
        norm_dweight,
        norm_dbias,
    )


def _convolution(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the convolution of images and weight, both rounded to `dtype`. The result is not rounded."""
    wide = torch.promote_types(dtype, torch.float32)
    with torch.autocast(images.device.type, enabled=False):
        return functional.conv2d(images.to(dtype).to(wide), weight.to(dtype).to(wide), padding=1)


def _taps(images: torch.Tensor) -> torch.Tensor:
    """Return the taps of (B, C, H, W) images, (B·H·W, K): those of the window, the tap that is 1, and zeros.

    K is a power of two, at least 16.
    """
    windows = functional.unfold(images.to(torch.promote_types(images.dtype, torch.float32)), 3, padding=1)
    taps = windows.unflatten(1, (-1, 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    taps = functional.pad(taps, (0, 1), value=1.0)
    num_taps = max(16, 1 << (taps.shape[1] - 1).bit_length())
    return functional.pad(taps, (0, num_taps - taps.shape[1]))
