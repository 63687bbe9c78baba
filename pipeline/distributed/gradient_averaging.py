"""Averages the gradients over the processes with at most two all-reduces."""

from collections.abc import Iterable

import torch
from torch import nn

_ALIGNED = 32  # float32 elements: every parameter's part begins at a multiple of 128 bytes


class GradientMean:
    """Makes the gradient of every parameter its mean over all processes, partly during the backward pass.

    A network that is compiled as one graph has all gradients at the end of its backward pass, too late to
    send any of them meanwhile, and DDP copies each into its bucket with one kernel launch per gradient. Here
    one launch gathers many gradients in one bucket, one all-reduce adds the buckets up, and `grad` is a view
    of the bucket. The bucket whose gradients are ready first is reduced during the backward pass, the other
    at its end.

    Args:
        parameters: float32, on one device, in the same order on every process. A parameter that has no
            gradient the first time never gets one.
        first: those of the parameters whose gradients are ready well before the others; may be empty.
        group: the processes; default: all.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        first: Iterable[nn.Parameter] = (),
        group: torch.distributed.ProcessGroup | None = None,
    ):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        early = {id(parameter) for parameter in first}
        self._first = _Bucket((parameter for parameter in trained if id(parameter) in early), group)
        self._rest = _Bucket((parameter for parameter in trained if id(parameter) not in early), group)
        # number of gradients that are not ready yet in the first bucket; negative except in the last backward
        # pass of a step
        self._missing = -1
        for parameter in self._first.parameters:
            parameter.register_post_accumulate_grad_hook(self._gradient_ready)

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Return the bytes that are reduced during the backward pass, and after it; 0 before the first."""
        return self._first.num_bytes, self._rest.num_bytes

    def start(self) -> None:
        """Prepare for the backward pass that completes the gradients. Call this before that pass."""
        self._missing = len(self._first.parameters)

    def finish(self) -> None:
        """Set every `grad` to its mean, after that pass. Waits for other processes, not for the device."""
        for bucket in (self._first, self._rest):
            bucket.send()
        for bucket in (self._first, self._rest):
            bucket.receive()
        self._missing = -1

    def _gradient_ready(self, parameter: nn.Parameter) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._first.send()


class _Bucket:
    """Holds gradients in one buffer.

    Attributes:
        parameters: those that the gradients belong to.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], group: torch.distributed.ProcessGroup | None = None
    ):
        self.parameters = list(parameters)
        self._group = group
        self._parts: list[torch.Tensor] = []
        self._buffer = torch.empty(0)
        self._work: torch.distributed.Work | None = None

    @property
    def num_bytes(self) -> int:
        return self._buffer.nbytes

    @torch.no_grad()
    def send(self) -> None:
        """Start the all-reduce, unless it has been started."""
        if not self._parts:
            self._allocate()
        if self._work is not None or not self.parameters:
            return
        torch._foreach_copy_(self._parts, [parameter.grad for parameter in self.parameters])  # type: ignore[misc]
        # gloo has no mean
        mean = torch.distributed.ReduceOp.AVG if self._buffer.is_cuda else torch.distributed.ReduceOp.SUM
        self._work = torch.distributed.all_reduce(self._buffer, mean, self._group, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the all-reduce and make the gradients views of the buffer."""
        if self._work is None:
            return
        self._work.wait()
        self._work = None
        if not self._buffer.is_cuda:
            self._buffer /= torch.distributed.get_world_size(self._group)
        for parameter, part in zip(self.parameters, self._parts, strict=True):
            parameter.grad = part

    def _allocate(self) -> None:
        self.parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in self.parameters]
        if self.parameters:
            self._buffer = self.parameters[0].new_zeros(sum(sizes))
        offset = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            # in the memory layout of the parameter
            self._parts.append(self._buffer.as_strided(parameter.shape, parameter.stride(), offset))
            offset += size
