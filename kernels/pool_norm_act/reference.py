"""Define `pool_norm_act` in plain PyTorch, and implement its two operators on the CPU.

Shapes: N images, C channels, H rows, W columns, M = N·⌊H / 2⌋·⌊W / 2⌋ rows of C pooled values. Arithmetic is
in float32, or in float64 for float64 activations.
"""

import torch
from torch.nn import functional

from kernels.arguments import Activation, Norm
from kernels.batch_norm_act import reference as batch_norm_act_reference


def pool_norm_act_reference(
    x: torch.Tensor,
    norm: Norm,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return activation(batch_norm(max_pool2d(x, 2))), rounded once. Arguments as of `pool_norm_act`."""
    pooled = functional.max_pool2d(x, 2)
    return batch_norm_act_reference.batch_norm_act_reference(pooled, norm, None, activation, momentum, eps)


def forward_reference(  # noqa: PLR0913
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, the pooled x, the places of the maxima, and the statistics that backward needs.

    The places are (M, ⌈C / 4⌉) uint8: bits 2k and 2k + 1 of byte g are 2·(row) + (column) of the maximum in
    the window of channel 4g + k. The statistics are (2, C): mean and 1 / standard deviation.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pooled, indices = functional.max_pool2d(wide, 2, return_indices=True)
    pooled = pooled.to(x.dtype).contiguous(memory_format=torch.channels_last)
    y, statistics, _ = batch_norm_act_reference.forward_reference(
        pooled, None, weight, bias, running_mean, running_var, activation, momentum, eps
    )
    width = x.shape[3]
    places = indices // width % 2 * 2 + indices % width % 2
    return y, pooled, _pack(places.permute(0, 2, 3, 1).flatten(0, 2)), statistics


def backward_reference(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    height: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by x, (N, C, height, width), and by weight and bias.

    `gradient` and `second_gradient` are those of two uses of y.
    """
    by_pooled, dweight, dbias, _ = batch_norm_act_reference.backward_reference(
        gradient, second_gradient, pooled, None, None, weight, bias, statistics, activation, False
    )
    num_images, num_channels, rows, columns = pooled.shape
    unpacked = _unpack(places, num_channels).unflatten(0, (num_images, rows, columns)).permute(0, 3, 1, 2)
    windows = torch.stack([torch.where(unpacked == place, by_pooled, 0) for place in range(4)], dim=-1)
    dx = windows.unflatten(-1, (2, 2)).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
    dx = functional.pad(dx, (0, width - 2 * columns, 0, height - 2 * rows))
    return dx.contiguous(memory_format=torch.channels_last), dweight, dbias


def _pack(places: torch.Tensor) -> torch.Tensor:
    groups = functional.pad(places, (0, -places.shape[1] % 4)).reshape(len(places), -1, 4)
    return (groups << 2 * torch.arange(4, device=places.device)).sum(2).to(torch.uint8)


def _unpack(places: torch.Tensor, num_channels: int) -> torch.Tensor:
    groups = places[:, :, None] >> 2 * torch.arange(4, dtype=torch.uint8, device=places.device) & 3
    return groups.reshape(len(places), -1)[:, :num_channels]
