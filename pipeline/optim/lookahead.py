"""Implements Lookahead: from time to time the weights go back to a slow average of themselves."""

import torch
from torch import nn


class Lookahead:
    """Slow weights that follow the fast ones (Zhang et al. 2019, arXiv:1907.08610).

    An update is slow ← d slow + (1 - d) fast, then fast ← slow. As in airbench96 (Jordan 2024,
    arXiv:2404.00498) the running statistics of batch norm take part, and d grows over the run. Every process
    computes the same.

    Counts and masks of infinities keep their values.

    Args:
        model: in training. Its tensors must keep their memory from now on.
    """

    def __init__(self, model: nn.Module):
        trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        self._fast = [*trained, *(buffer for buffer in model.buffers() if _averages(buffer))]
        self.slow = [value.clone() for value in self._fast]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move both; never waits for the device.

        Args:
            decay: d, in [0, 1]: the share of the slow weights that stays.
        """
        torch._foreach_lerp_(self.slow, self._fast, 1 - decay)
        torch._foreach_copy_(self._fast, self.slow)

    @torch.no_grad()
    def load(self, slow: list[torch.Tensor]) -> None:
        """Take over the slow weights of a checkpoint, on any device."""
        for own, saved in zip(self.slow, slow, strict=True):
            own.copy_(saved)


def _averages(buffer: torch.Tensor) -> bool:
    # in the mask of an attention the difference of two infinities is NaN
    return buffer.is_floating_point() and bool(buffer.isfinite().all())
