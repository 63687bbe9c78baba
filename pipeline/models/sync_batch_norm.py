"""Computes batch norm with the statistics of all processes' batches, on GPU and CPU.

torch's SyncBatchNorm runs on GPUs only. The method is that of Zhang et al. 2018 (arXiv:1803.08904, section
3.2): the moments are summed over the processes in the forward pass, and their gradients in the backward pass.
"""

from typing import Any

import torch
from torch import nn


@torch.library.custom_op("quickres::sum_over_processes", mutates_args=())
def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes. Its gradient is the sum of their gradients.

    It is one op, so that torch.compile does not look into it.
    """
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


@sum_over_processes.register_fake
def _(values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(values)


def _sum_gradients(context: Any, gradient: torch.Tensor) -> torch.Tensor:
    return sum_over_processes(gradient.contiguous())


sum_over_processes.register_autograd(_sum_gradients)


def sync_batch_norm(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """Apply `norm` as in training, with the batches of all processes, which have one size, as one batch.

    Moments are computed in float32 and summed in float64, so that the difference of the mean square and the
    squared mean keeps its digits.

    Shape: (B, C, H, W) → the same, in the same dtype.
    """
    world_size = torch.distributed.get_world_size()
    wide = x.float()
    variance, mean = torch.var_mean(wide, dim=(0, 2, 3), correction=0)
    mean, variance = mean.double(), variance.double()
    mean, square = (sum_over_processes(torch.stack([mean, variance + mean.square()])) / world_size).unbind()
    mean, variance = mean.float(), (square - mean.square()).float()
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    count = world_size * x.numel() // x.shape[1]
    with torch.no_grad():
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - mean * scale
    return torch.addcmul(shift[:, None, None], wide, scale[:, None, None]).to(x.dtype)
