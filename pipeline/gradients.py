"""The mean of the gradient over the processes, by one all-reduce."""

from collections.abc import Iterable

import torch
from torch import nn

_ALIGNED = 32  # float32 elements: every part begins at a multiple of 128 bytes


class GradientMean:
    """Makes the gradient of every parameter the mean over all processes, once the backward pass is over.

    DDP sends a bucket of gradients as soon as it is full. But what is compiled as one graph has all gradients at the end of its backward
    pass, when there is nothing left to overlap with, and DDP copies each into its bucket by a launch of its own. Here one launch gathers
    all of them in one buffer, one all-reduce adds them up, and `grad` is a view of the buffer.

    Args:
        parameters: float32, on one device, in the same order on every process. Those that have no gradient at the first call never get one.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._parts: list[torch.Tensor] = []
        self._flat = torch.empty(0)

    @torch.no_grad()
    def __call__(self) -> None:
        """Waits for the other processes, not for the host."""
        if not self._parts:
            self._allocate()
        torch._foreach_copy_(self._parts, [parameter.grad for parameter in self._parameters])  # type: ignore[misc]
        if self._flat.is_cuda:
            torch.distributed.all_reduce(self._flat, torch.distributed.ReduceOp.AVG)
        else:  # gloo knows no mean
            torch.distributed.all_reduce(self._flat)
            self._flat /= torch.distributed.get_world_size()
        for parameter, part in zip(self._parameters, self._parts, strict=True):
            parameter.grad = part

    def _allocate(self) -> None:
        self._parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in self._parameters]
        self._flat = self._parameters[0].new_zeros(sum(sizes))
        offset = 0
        for parameter, size in zip(self._parameters, sizes, strict=True):
            self._parts.append(self._flat.as_strided(parameter.shape, parameter.stride(), offset))  # in the layout of the parameter
            offset += size
