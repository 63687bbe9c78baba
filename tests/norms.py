"""Batch norms of networks under test: random statistics, and what such a layer computes in evaluation."""

from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


def randomise_norms(network: Network) -> Network:
    """Give scales, shifts and running statistics random values, also where a block starts as its shortcut."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


def normed(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
