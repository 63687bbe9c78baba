"""The optimizer, and the learning rate as a pure function of the optimizer step."""

import math
from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import OptimizerConfig, ScheduleConfig, to_steps


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.SGD:
    """Fused SGD with momentum, whose learning rate is one device tensor shared by all parameter groups.

    Fused, it takes the GradScaler's scale and found-inf flag on the device, so that no step waits for the host. Momentum starts as
    zeros: torch leaves the buffers of a fused SGD uninitialised where the very first update is skipped for overflow.
    """
    decayed = [p for p in model.parameters() if p.requires_grad and (config.decay_norm_and_bias or p.ndim > 1)]
    others = [p for p in model.parameters() if p.requires_grad and not (config.decay_norm_and_bias or p.ndim > 1)]
    device = decayed[0].device
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=torch.tensor(config.lr, device=device),
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=True,
    )
    if config.momentum:
        for parameter in decayed + others:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def build_schedule(peak: float, config: ScheduleConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate as `lr_at(step)`, step 0 being the first update.

    Warm-up from `start_fraction` to the peak, a line (Goyal et al. 2017, arXiv:1706.02677, section 2.2), then:

    - `linear` falls in a line to `final_fraction` (the triangle of Smith 2018, arXiv:1803.09820);
    - `cosine` falls along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts);
    - `one_cycle` falls likewise and rises along half a cosine too: the two phases of `torch.optim.lr_scheduler.OneCycleLR`;
    - `step` multiplies by `gamma` at every milestone (He et al. 2015, arXiv:1512.03385, section 4.2).

    The peak is at step `warmup`, the end of the fall at `total_steps`, one after the last update. The rate depends on the step alone: not
    on the number of processes, nor on updates skipped.

    >>> lr_at = build_schedule(1.0, ScheduleConfig(warmup="2st", start_fraction=0.0), steps_per_epoch=10, total_steps=10)
    >>> [round(lr_at(step), 3) for step in (0, 1, 2, 6)]
    [0.0, 0.5, 1.0, 0.5]
    """
    warmup = to_steps(config.warmup, steps_per_epoch, total_steps)
    milestones = sorted(to_steps(m, steps_per_epoch, total_steps) for m in config.milestones)

    def lr_at(step: int) -> float:
        if step < warmup:
            risen = _half_cosine(step / warmup) if config.name == "one_cycle" else step / warmup
            return peak * (config.start_fraction + (1 - config.start_fraction) * risen)
        if config.name == "step":
            return peak * config.gamma ** sum(step >= m for m in milestones)
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        fallen = progress if config.name == "linear" else _half_cosine(progress)
        return peak * (1 - (1 - config.final_fraction) * fallen)

    return lr_at


def _half_cosine(progress: float) -> float:
    """From 0 to 1, level at both ends."""
    return (1 - math.cos(math.pi * progress)) / 2
