"""Run the backward pass with the kernels of `batch_norm_act`, which also handle the residual's norm."""

import torch

from kernels.batch_norm_act.backward import Inputs, ResidualTensors, launch_gradients
from kernels.norm_gradient import NormConstants, empty_gradients

# by x, weight and bias, and by the residual and its weight and bias
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def backward_outputs(x: torch.Tensor, weight: torch.Tensor) -> Gradients:
    """Return tensors for the results of `launch_backward`."""
    return *empty_gradients(x, weight), *empty_gradients(x, weight)


def launch_backward(  # noqa: PLR0913
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    statistics: torch.Tensor,
) -> Gradients:
    """Run the backward kernels and return the gradients. Activations must be channels_last."""
    outputs = backward_outputs(x, weight)
    inputs = Inputs(gradient, second_gradient, x, mask)
    norm = NormConstants(weight, bias, statistics)
    residual_tensors = ResidualTensors(residual, residual_weight, *outputs[3:])
    launch_gradients(inputs, norm, torch.empty_like(x), "relu", outputs[:3], residual_tensors)
    return outputs
