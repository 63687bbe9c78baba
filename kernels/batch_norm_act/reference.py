"""Define `batch_norm_act` in plain PyTorch, and implement its two operators on the CPU.

Shapes: N images, C channels, H rows, W columns, M = N·H·W rows of C values, G = ⌈C / 8⌉ bytes of mask a row.
Arithmetic is in float32, or in float64 for float64 activations.
"""

import math

import torch
from torch.nn import functional

from kernels.arguments import Activation, Norm


def batch_norm_act_reference(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return activation(batch_norm(x) + residual), rounded once. Arguments as of `batch_norm_act`."""
    weight, bias, running_mean, running_var = norm
    z = functional.batch_norm(
        widen(x), running_mean, running_var, weight, bias, training=True, momentum=momentum, eps=eps
    )
    if residual is not None:
        z = z + widen(residual)
    return activation_reference(z, activation).to(x.dtype)


def forward_reference(  # noqa: PLR0913
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, the statistics that backward needs, and the mask of a ReLU.

    The statistics are (2, C): mean and 1 / standard deviation. With a residual and a ReLU the mask is (M, G)
    uint8: bit k of byte g is 1 if the gradient passes channel 8g + k. Otherwise the mask is empty.
    """
    z, mean, inverse_std = torch.native_batch_norm(
        widen(x), weight, bias, running_mean, running_var, True, momentum, eps
    )
    mask = torch.empty(0, dtype=torch.uint8, device=x.device)
    if residual is not None:
        z = z + widen(residual)
        if activation == "relu":
            mask = _pack(_rows(z))
    y = activation_reference(z, activation).to(x.dtype)
    return y.contiguous(memory_format=torch.channels_last), torch.stack([mean, inverse_std]), mask


def backward_reference(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    returns_dz: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by x, weight and bias, and dz.

    dz is the gradient by the sum under the activation, empty unless `returns_dz`. `gradient` and
    `second_gradient` are those of two uses of y. With a mask, the residual is not needed. Source: Ioffe and
    Szegedy 2015 (arXiv:1502.03167, section 3).
    """
    mean, inverse_std = statistics
    rows = _rows(widen(x))
    normalised = (rows - mean) * inverse_std
    dz = _rows(widen(gradient))
    if second_gradient is not None:
        dz = dz + _rows(widen(second_gradient))
    if mask is not None:
        dz = dz * _unpack(mask, x.shape[1])
    else:
        z = normalised * weight + bias
        dz = dz * slope_reference(z if residual is None else z + _rows(widen(residual)), activation)
    dbias, dweight = dz.sum(0), (dz * normalised).sum(0)
    dx = weight * inverse_std * (dz - dbias / len(rows) - normalised * dweight / len(rows))
    return _images(dx, x), dweight, dbias, _images(dz, x) if returns_dz else x.new_empty(0)


def activation_reference(z: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the activation of z."""
    if activation == "none":
        return z
    return {"relu": functional.relu, "silu": functional.silu, "gelu": functional.gelu}[activation](z)


def slope_reference(z: torch.Tensor, activation: str) -> torch.Tensor:
    """Return the derivative of the activation at z."""
    if activation == "none":
        return torch.ones_like(z)
    if activation == "relu":
        return (~(z <= 0)).to(z.dtype)
    if activation == "silu":
        sigmoid = z.sigmoid()
        return sigmoid + z * sigmoid * (1 - sigmoid)
    return torch.special.ndtr(z) + z * (-z.square() / 2).exp() / math.sqrt(2 * math.pi)


def widen(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32, or in float64 if it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) as (M, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return (M, C) in the shape and dtype of `like`, channels_last."""
    num_images, num_channels, height, width = like.shape
    return rows.to(like.dtype).reshape(num_images, height, width, num_channels).permute(0, 3, 1, 2)


def _pack(z: torch.Tensor) -> torch.Tensor:
    passes = functional.pad(~(z <= 0), (0, -z.shape[1] % 8)).reshape(len(z), -1, 8)
    bits = passes.to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=z.device)
    return bits.sum(2, dtype=torch.uint8)


def _unpack(mask: torch.Tensor, num_channels: int) -> torch.Tensor:
    bits = mask[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=mask.device) & 1
    return bits.reshape(len(mask), -1)[:, :num_channels]
