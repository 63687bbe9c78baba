"""Define `conv_pool_norm_act` in plain PyTorch, and implement its two operators on the CPU.

Shapes: N images, C channels, H rows, W columns, O output channels of the convolution. Arithmetic is in
float32, or in float64 for float64 activations.
"""

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from kernels.arguments import Activation, Norm
from kernels.batch_norm_act.reference import widen
from kernels.pool_norm_act import reference as pool_norm_act_reference


def conv_pool_norm_act_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return activation(batch_norm(max_pool2d(conv2d(x, weight, padding=1), 2))).

    The weight is first cast to the dtype of x. The output of the convolution is rounded to it, and so is the
    result. Arguments as of `conv_pool_norm_act`.
    """
    convolved = _convolve(x, weight)
    return pool_norm_act_reference.pool_norm_act_reference(convolved, norm, activation, momentum, eps)


def forward_reference(  # noqa: PLR0913
    x: torch.Tensor,
    filters: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `forward_reference` of `pool_norm_act` returns for the output of the convolution."""
    norm = weight, bias, running_mean, running_var
    return pool_norm_act_reference.forward_reference(_convolve(x, filters), *norm, activation, momentum, eps)


def backward_reference(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    pooled: torch.Tensor,
    places: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    activation: str,
    x: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by the convolution's weight, (O, C, 3, 3), and by the norm's weight and bias.

    `gradient` and `second_gradient` are those of two uses of the result. `pooled`, `places` and `statistics`
    are those of `forward_reference` of `pool_norm_act`. The gradient by the output of the convolution is
    rounded to the dtype of x.
    """
    saved = pooled, places, weight, bias, statistics
    dense, dweight, dbias = pool_norm_act_reference.backward_reference(
        gradient, second_gradient, *saved, activation, *x.shape[2:]
    )
    shape = pooled.shape[1], x.shape[1], 3, 3
    by_filter = conv2d_weight(widen(x), shape, widen(dense), padding=1)
    return by_filter.contiguous(memory_format=torch.channels_last), dweight, dbias


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(widen(x), widen(weight.to(x.dtype)), padding=1).to(x.dtype)
