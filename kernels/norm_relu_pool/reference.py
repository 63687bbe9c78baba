"""Define `norm_relu_pool` in plain PyTorch, and implement its two operators on the CPU.

Shapes: N images, C channels, H rows, W columns; H' = ⌈H / 2⌉ and W' = ⌈W / 2⌉. Arithmetic is in float32, or
in float64 for float64 activations.
"""

import torch
from torch.nn import functional

from kernels.arguments import Norm
from kernels.batch_norm_act import reference as batch_norm_act_reference

_NOWHERE = 9


def norm_relu_pool_reference(
    x: torch.Tensor, norm: Norm, momentum: float = 0.1, eps: float = 1e-5
) -> torch.Tensor:
    """Return max_pool2d(relu(batch_norm(x)), 3, 2, 1), rounded once. Arguments as of `norm_relu_pool`."""
    y = batch_norm_act_reference.batch_norm_act_reference(x, norm, None, "relu", momentum, eps)
    return functional.max_pool2d(y, 3, 2, 1)


def forward_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, the pooled x, the places of its values, and the statistics that backward needs.

    The places are (N, C, H', W') uint8: 3·(row) + (column) in the window of 3x3 pixels, and 9 where y is 0.
    The statistics are (2, C): mean and 1 / standard deviation.
    """
    _, statistics, _ = batch_norm_act_reference.forward_reference(
        x, None, weight, bias, running_mean, running_var, "relu", momentum, eps
    )
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    _, indices = functional.max_pool2d(wide * _per_channel(weight.sign()), 3, 2, 1, return_indices=True)
    pooled = wide.flatten(2).gather(2, indices.flatten(2)).view_as(indices)
    mean, inverse_std = (_per_channel(each) for each in statistics)
    z = (pooled - mean) * (inverse_std * _per_channel(weight)) + _per_channel(bias)
    rows, columns = (torch.arange(size, device=x.device) for size in indices.shape[2:])
    row, column = indices // x.shape[3] - 2 * rows[:, None] + 1, indices % x.shape[3] - 2 * columns + 1
    places = torch.where(z <= 0, _NOWHERE, 3 * row + column)
    results = functional.relu(z).to(x.dtype), pooled.to(x.dtype), places.to(torch.uint8)
    y, pooled, places = (each.contiguous(memory_format=torch.channels_last) for each in results)
    return y, pooled, places, statistics


def backward_reference(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by x, weight and bias.

    `gradient` and `second_gradient` are those of two uses of y.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    dy = gradient.to(wide) if second_gradient is None else gradient.to(wide) + second_gradient.to(wide)
    dz = torch.where(places == _NOWHERE, 0, dy)
    mean, inverse_std = (_per_channel(each) for each in statistics)
    dbias = dz.sum((0, 2, 3))
    dweight = (dz * (pooled.to(wide) - mean) * inverse_std).sum((0, 2, 3))
    count = x.numel() // x.shape[1]
    normalised = (x.to(wide) - mean) * inverse_std
    means = (_per_channel(each / count) for each in (dbias, dweight))
    by_bias, by_weight = means
    dx = _spread(dz, places, x.shape) - by_bias - normalised * by_weight
    dx = (dx * (inverse_std * _per_channel(weight))).to(x.dtype)
    return dx.contiguous(memory_format=torch.channels_last), dweight.to(weight.dtype), dbias.to(bias.dtype)


def _spread(dz: torch.Tensor, places: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return (N, C, H, W): each gradient at its place, and the sum where windows share one."""
    height, width = shape[2:]
    rows, columns = (torch.arange(size, device=dz.device) for size in dz.shape[2:])
    place = places.long()
    row, column = 2 * rows[:, None] - 1 + place // 3, 2 * columns - 1 + place % 3
    index = torch.where(place == _NOWHERE, 0, row * width + column)  # where the gradient is 0
    spread = dz.new_zeros((*shape[:2], height * width))
    return spread.scatter_add_(2, index.flatten(2), dz.flatten(2)).view(shape)


def _per_channel(vector: torch.Tensor) -> torch.Tensor:
    return vector[:, None, None]
