"""The optimizer, and the learning rate as a pure function of the optimizer step."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerConfig
from pipeline.errors import UserError
from pipeline.optim.muon import Muon


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Fused SGD, fused AdamW or Muon, whose learning rate is one device tensor: that of its first group, and of all its groups or, with
    Muon, what the others follow.

    Fused, they take the GradScaler's found-inf flag on the device, so that no step waits for the host. The momentum of SGD starts as
    zeros: torch leaves the buffers of a fused SGD uninitialised where the very first update is skipped for overflow.

    Raises:
        UserError: Muon, and the network has no weight between the first and the last.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    lr = torch.tensor(config.lr, device=trained[0].device)
    if config.name == "adamw":
        capturable = lr.is_cuda
        optimizer = torch.optim.AdamW(
            _groups(config, trained, config.weight_decay),
            lr=lr,
            betas=config.betas,
            weight_decay=0.0,
            fused=True,
            capturable=capturable,
        )
        optimizer._warned_capturable_if_run_uncaptured = True  # the steps before the capture are meant
        return optimizer
    if config.name == "muon":
        matrices = hidden_matrices(trained)
        mine = {id(p) for p in matrices}
        others = _groups(config, [p for p in trained if id(p) not in mine], config.sgd_weight_decay)
        optimizer = Muon(
            matrices, others, lr, config.momentum, config.nesterov, config.weight_decay, config.sgd_lr_ratio
        )
    else:
        groups = _groups(config, trained, config.weight_decay)
        optimizer = torch.optim.SGD(
            groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """One group with weight decay and one without, or the one of them that is not empty."""
    decayed = [p for p in parameters if config.decay_norm_and_bias or p.ndim > 1]
    others = [p for p in parameters if not (config.decay_norm_and_bias or p.ndim > 1)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The weights of two or more dimensions but the first, which sees images, and the last, which names classes (Jordan 2024).

    Raises:
        UserError: there is none.
    """
    matrices = [p for p in parameters if p.ndim > 1][1:-1]
    if not matrices:
        raise UserError(
            "optimizer.name: muon is for the weights between the first and the last, and this network has none; use sgd"
        )
    return matrices
