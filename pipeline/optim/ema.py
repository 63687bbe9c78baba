"""Averages a network's weights over the steps, on the device, inside the training step.

torch's `AveragedModel` reads a counter back to the host at every update, has no bias correction, does not
skip a step whose gradients overflowed, and turns a mask of infinities into NaN.
"""

import torch
from torch import nn

from pipeline.optim.plain import Sgd


class Ema:
    """The exponential moving average of the weights after each step.

    See Polyak & Juditsky 1992, and Tarvainen & Valpola 2017 (arXiv:1703.01780), section 2.

    After update t it is the mean of the weights w_1 … w_t that it was updated with, weighted by
    decay^(t - i): the initial weights are not part of it. The update is
    average += (1 - decay) / (1 - decay^t) * (w_t - average). This is Adam's bias correction (Kingma & Ba
    2015, arXiv:1412.6980, section 3), applied at every update, so that the average can be evaluated and saved
    at any time.

    The running statistics of batch norm are averaged in the same way, as in timm and in torch's
    `AveragedModel(use_buffers=True)`: they belong to weights of the same age. Counts (integer buffers, which
    nothing reads) and masks of infinities keep their values. A step that was skipped for overflow does not
    change the average.

    Args:
        model: the raw module in training. Its tensors must keep their memory from now on.
        copy: a copy of it, made before it was compiled, that will hold the averages.
        decay: in [0, 1). With 0 the average equals the newest weights.

    Attributes:
        model: the copy, in evaluation mode.
    """

    def __init__(self, model: nn.Module, copy: nn.Module, decay: float):
        self.model = copy.eval().requires_grad_(False)
        self._decay = decay
        averages = []
        for average, newest in zip(_floating(self.model), _floating(model), strict=True):
            if not newest.isfinite().all():
                continue  # the mask of an attention: the difference of two infinities is NaN
            average.grad = newest.detach()  # shares the weight's memory, so it always is the newest weight
            averages.append(average)
        self._weight = torch.ones((), device=averages[0].device)
        # SGD with weight decay 1 that ascends along `newest` computes p + lr * (newest - p). It is one fused
        # launch, and it does nothing if `found_inf` is 1.
        self._mover = Sgd(averages, lr=self._weight, weight_decay=1.0, maximize=True, fused=True)

    def set_step(self, step: int, every: int = 1) -> None:
        """Set the share of the newest weights in the next update.

        Args:
            step: of that update; 0 for the first.
            every: interval of the updates in steps: after the other steps the share is 0, and the average
                stays as it is. Until the first update it consists of the initial weights.
        """
        count, rest = divmod(step + 1, every)
        self._weight.fill_(0.0 if rest else (1 - self._decay) / (1 - self._decay**count))

    @torch.no_grad()
    def update(self, found_inf: torch.Tensor) -> None:
        """Include the current weights, unless the float32 device scalar FOUND_INF is 1. Never waits."""
        self._mover.found_inf = found_inf  # type: ignore[attr-defined]
        self._mover.step()


def _floating(model: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
