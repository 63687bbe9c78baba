"""Builds the optimizer that the config names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config import AdamwConfig, MuonConfig, OptimizerConfig, SgdConfig
from pipeline.errors import UserError
from pipeline.optim.muon import Muon


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build fused SGD, fused AdamW or Muon.

    The learning rate is one device tensor, that of the first group. All groups share it; with Muon, the other
    groups follow it. Fused optimizers read the GradScaler's found-inf flag on the device, so that no step
    waits for the host.

    Raises:
        UserError: Muon, and the network has no weight between the first and the last.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    lr = torch.tensor(config.lr, device=trained[0].device)
    match config:
        case AdamwConfig():
            return _build_adamw(config, trained, lr)
        case MuonConfig():
            return _build_muon(config, trained, lr)
        case SgdConfig():
            return _build_sgd(config, trained, lr)


def _build_adamw(
    config: AdamwConfig, trained: Sequence[nn.Parameter], lr: torch.Tensor
) -> torch.optim.Optimizer:
    groups = _groups(config, trained, config.weight_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=lr, betas=config.betas, weight_decay=0.0, fused=True, capturable=lr.is_cuda
    )
    optimizer._warned_capturable_if_run_uncaptured = True  # some steps run before the capture on purpose
    return optimizer


def _build_sgd(config: SgdConfig, trained: Sequence[nn.Parameter], lr: torch.Tensor) -> torch.optim.Optimizer:
    groups = _groups(config, trained, config.weight_decay)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    _zero_momentum(optimizer)
    return optimizer


def _build_muon(
    config: MuonConfig, trained: Sequence[nn.Parameter], lr: torch.Tensor
) -> torch.optim.Optimizer:
    matrices = hidden_matrices(trained)
    matrix_ids = {id(p) for p in matrices}
    others = [p for p in trained if id(p) not in matrix_ids]
    optimizer = Muon(
        matrices,
        _groups(config, others, config.sgd_weight_decay),
        lr,
        config.momentum,
        config.nesterov,
        config.weight_decay,
        config.sgd_lr_ratio,
    )
    _zero_momentum(optimizer)
    return optimizer


def _zero_momentum(optimizer: torch.optim.SGD) -> None:
    """Start the momentum as zeros.

    torch does not initialise the buffers of a fused SGD if the very first update is skipped for overflow.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _groups(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Return one group with weight decay and one without; an empty group is left out."""
    decayed = [p for p in parameters if config.decay_norm_and_bias or p.ndim > 1]
    others = [p for p in parameters if not (config.decay_norm_and_bias or p.ndim > 1)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return the weights of two or more dimensions, except the first (for images) and the last (for classes).

    See Jordan 2024.

    Raises:
        UserError: there are none.
    """
    matrices = [p for p in parameters if p.ndim > 1][1:-1]
    if not matrices:
        raise UserError(
            "optimizer.name: muon is for the weights between the first and the last, and this network has "
            "none; use sgd"
        )
    return matrices
