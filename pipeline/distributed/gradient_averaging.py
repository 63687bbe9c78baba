"""The mean of the gradient over the processes, by at most two all-reduces."""

from collections.abc import Iterable

import torch
from torch import nn

_ALIGNED = 32  # float32 elements: every part begins at a multiple of 128 bytes


class GradientMean:
    """Makes the gradient of every parameter the mean over all processes, part of it while the backward pass goes on.

    What is compiled as one graph has all gradients at the end of its backward pass, too late to send any meanwhile, and DDP copies each
    into its bucket by a launch of its own. Here one launch gathers many in one message, one all-reduce adds them up, and `grad` is a view
    of the message. The message of those that are there first is sent as soon as they are, the other one at the end.

    Args:
        parameters: float32, on one device, in the same order on every process. Those that have no gradient the first time never get one.
        first: of them, those whose gradients are there well before the others'; may be empty.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], first: Iterable[nn.Parameter] = ()):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        early = {id(parameter) for parameter in first}
        self._first = _Message(parameter for parameter in trained if id(parameter) in early)
        self._rest = _Message(parameter for parameter in trained if id(parameter) not in early)
        self._missing = (
            -1
        )  # gradients of the first message that have not come; below 0: nobody waits for them
        for parameter in self._first.parameters:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    def start(self) -> None:
        """Before the backward pass that completes the gradients."""
        self._missing = len(self._first.parameters)

    def finish(self) -> None:
        """After it: `grad` is the mean. Waits for the other processes, not for the host."""
        for message in (self._first, self._rest):
            message.send()
        for message in (self._first, self._rest):
            message.receive()
        self._missing = -1

    def _arrived(self, parameter: nn.Parameter) -> None:
        self._missing -= 1
        if self._missing == 0:
            self._first.send()


class _Message:
    """Gradients in one buffer.

    Attributes:
        parameters: that they belong to.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = list(parameters)
        self._parts: list[torch.Tensor] = []
        self._buffer = torch.empty(0)
        self._work: torch.distributed.Work | None = None

    @torch.no_grad()
    def send(self) -> None:
        """Unless it is on its way already."""
        if not self._parts:
            self._allocate()
        if self._work is not None or not self.parameters:
            return
        torch._foreach_copy_(self._parts, [parameter.grad for parameter in self.parameters])  # type: ignore[misc]
        mean = (
            torch.distributed.ReduceOp.AVG if self._buffer.is_cuda else torch.distributed.ReduceOp.SUM
        )  # gloo knows no mean
        self._work = torch.distributed.all_reduce(self._buffer, mean, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        if self._work is None:
            return
        self._work.wait()
        self._work = None
        if not self._buffer.is_cuda:
            self._buffer /= torch.distributed.get_world_size()
        for parameter, part in zip(self.parameters, self._parts, strict=True):
            parameter.grad = part

    def _allocate(self) -> None:
        self.parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        sizes = [-(-parameter.numel() // _ALIGNED) * _ALIGNED for parameter in self.parameters]
        if self.parameters:
            self._buffer = self.parameters[0].new_zeros(sum(sizes))
        offset = 0
        for parameter, size in zip(self.parameters, sizes, strict=True):
            self._parts.append(
                self._buffer.as_strided(parameter.shape, parameter.stride(), offset)
            )  # in the layout of the parameter
            offset += size
