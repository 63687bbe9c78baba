"""An exponential moving average of a network's weights, kept on the device inside the training step."""

import torch
from torch import nn


class Ema:
    """The average of the weights after each step, newer ones counting more (Polyak & Juditsky 1992; Tarvainen & Valpola 2017,
    arXiv:1703.01780, section 2).

    After step t it is the mean of the weights w_1 … w_t, weighted by decay^(t - i): the initial weights have no part in it. As a
    recursion that is average += (1 - decay) / (1 - decay^t) * (w_t - average), which is Adam's bias correction (Kingma & Ba 2015,
    arXiv:1412.6980, section 3) applied as it goes, so that the average can be evaluated and saved as it is.

    The running statistics of batch norm are averaged likewise, as timm and torch's `AveragedModel(use_buffers=True)` do: they belong to
    weights of the same age. Counts (integer buffers, which nothing reads) and masks of infinities stay as they were. A step that was
    skipped for overflow leaves the average alone.

    Args:
        model: the raw module, as it is trained: its tensors must stay where they are from now on.
        copy: a copy of it that was made before it was compiled, to hold the averages.
        decay: in [0, 1); 0 follows the weights at once.

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
            average.grad = newest.detach()  # the very memory of the weight, for good
            averages.append(average)
        self._weight = torch.ones((), device=averages[0].device)
        # p + lr * (newest - p) is what SGD with decay 1 does as it ascends along `newest`: one fused launch that heeds found_inf
        self._mover = torch.optim.SGD(averages, lr=self._weight, weight_decay=1.0, maximize=True, fused=True)

    def set_step(self, step: int) -> None:
        """Set what the newest weights count in the coming update, which is that of STEP (0 for the first)."""
        self._weight.fill_((1 - self._decay) / (1 - self._decay ** (step + 1)))

    @torch.no_grad()
    def update(self, found_inf: torch.Tensor) -> None:
        """Take in the weights as they are now, unless FOUND_INF, a float32 device scalar, is 1. Nothing waits for the host."""
        self._mover.found_inf = found_inf  # type: ignore[attr-defined]
        self._mover.step()


def _floating(model: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
