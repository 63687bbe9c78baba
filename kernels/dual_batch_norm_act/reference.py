"""Define `dual_batch_norm_act` in plain PyTorch, and implement its two operators on the CPU.

Shapes: (N, C, H, W) activations, (C,) parameters. Arithmetic is in float32, or in float64 for float64
activations.
"""

import torch

from kernels.arguments import Norm
from kernels.batch_norm_act.reference import (
    backward_reference,
    batch_norm_act_reference,
    forward_reference,
    widen,
)


def dual_batch_norm_act_reference(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor,
    residual_norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(x) + batch_norm(residual)), rounded once. For arguments see the op."""
    normalised = batch_norm_act_reference(
        widen(residual), residual_norm, activation="none", momentum=momentum, eps=eps
    )
    return batch_norm_act_reference(x, norm, residual=normalised, momentum=momentum, eps=eps)


def dual_forward_reference(  # noqa: PLR0913
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor,
    residual_weight: torch.Tensor,
    residual_bias: torch.Tensor,
    residual_running_mean: torch.Tensor,
    residual_running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y, the statistics, (4, C): those of x, then of the residual, and the mask of the ReLU."""
    residual_norm = residual_weight, residual_bias, residual_running_mean, residual_running_var
    normalised, residual_statistics, _ = forward_reference(
        widen(residual), None, *residual_norm, "none", momentum, eps
    )
    y, statistics, mask = forward_reference(
        x, normalised, weight, bias, running_mean, running_var, "relu", momentum, eps
    )
    return y, torch.cat([statistics, residual_statistics]), mask


def dual_backward_reference(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    statistics: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients by x, weight and bias, and by the residual and its weight and bias."""
    *by_x, dz = backward_reference(
        gradient, second_gradient, x, None, mask, weight, bias, statistics[:2], "relu", True
    )
    by_residual = backward_reference(
        dz, None, residual, None, None, residual_weight, bias, statistics[2:], "none", False
    )[:3]
    return by_x[0], by_x[1], by_x[2], *by_residual
