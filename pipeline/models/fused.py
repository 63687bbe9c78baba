"""Decides which layers run on our Triton kernels: in training, and in the evaluations of a training run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class FusedLayer(nn.Module):
    """Base of the layers that can run on our kernels.

    Attributes:
        fused: in training on a GPU, run on the kernels.
        evaluates_on_kernels: if `fused`, in evaluation mode too, without gradients. False unless inside
            `kernels_in_evaluation`: exported networks, predictions and explanations are PyTorch's own.
    """

    fused: bool
    evaluates_on_kernels: bool

    def _set_fused(self, fused: bool) -> None:
        self.fused, self.evaluates_on_kernels = fused, False

    def _uses_kernels(self, input: torch.Tensor) -> bool:
        """Return True if this call is one of training on our kernels."""
        return self.fused and self.training and input.is_cuda

    def _infers_on_kernels(self, input: torch.Tensor) -> bool:
        """Return True if this call is one of evaluation on our kernels."""
        return self.fused and not self.training and self.evaluates_on_kernels and input.is_cuda


@contextmanager
def kernels_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Let the fused layers of a network run on our kernels in evaluation mode too."""
    layers = [module for module in model.modules() if isinstance(module, FusedLayer)]
    for layer in layers:
        layer.evaluates_on_kernels = True
    try:
        yield
    finally:
        for layer in layers:
            layer.evaluates_on_kernels = False
