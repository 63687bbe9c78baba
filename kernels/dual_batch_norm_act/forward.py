"""Run the forward pass with the kernels of `batch_norm_act`, which normalise the residual as they read it."""

import torch

from kernels.arguments import Norm
from kernels.batch_norm_act.forward import Outputs, empty_outputs, launch_apply, launch_statistics


def forward_outputs(x: torch.Tensor) -> Outputs:
    """Return tensors for the results of `launch_forward`."""
    return empty_outputs(x, 4, has_mask=True)


def launch_forward(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor, residual_norm: Norm, momentum: float, eps: float
) -> Outputs:
    """Return what `dual_forward_reference` returns. x and residual must be channels_last."""
    outputs = forward_outputs(x)
    statistics = outputs[1]
    tensors = launch_statistics(x, norm, statistics)
    residual_tensors = launch_statistics(residual, residual_norm, statistics[2:])
    launch_apply(x, tensors, residual, residual_tensors, outputs, "relu", momentum, eps)
    return outputs
