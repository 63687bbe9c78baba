"""Builds the optimizer that the config names."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.config import AdamwConfig, MuonConfig, OptimizerConfig, SgdConfig
from pipeline.optim.muon import Muon
from pipeline.optim.parts import Part, partition
from pipeline.optim.plain import AdamW, Sgd


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build fused SGD, fused AdamW or Muon, with one parameter group for each part of `partition`.

    The learning rate of a group is a device tensor, so that no step waits for the host. Fused optimizers read
    the GradScaler's found-inf flag on the device.

    Raises:
        UserError: Muon, and the network has no weight between the first and the last; or an entry of
            `optimizer.groups` fits no parameter.
    """
    parts = partition(config, model)
    match config:
        case AdamwConfig():
            return _build_adamw(config, parts)
        case MuonConfig():
            return _build_muon(config, parts)
        case SgdConfig():
            return _build_sgd(config, parts)


def _build_adamw(config: AdamwConfig, parts: Sequence[Part]) -> torch.optim.Optimizer:
    on_gpu = parts[0].parameters[0].is_cuda
    optimizer = AdamW(
        _groups(config, parts), betas=config.betas, weight_decay=0.0, fused=True, capturable=on_gpu
    )
    optimizer._warned_capturable_if_run_uncaptured = True  # some steps run before the capture on purpose
    return optimizer


def _build_sgd(config: SgdConfig, parts: Sequence[Part]) -> torch.optim.Optimizer:
    groups = _groups(config, parts)
    optimizer = Sgd(groups, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    _zero_momentum(optimizer)
    return optimizer


def _build_muon(config: MuonConfig, parts: Sequence[Part]) -> torch.optim.Optimizer:
    groups = _groups(config, parts)
    num_muon = sum(part.orthogonalised for part in parts)
    optimizer = Muon(groups[:num_muon], groups[num_muon:], config)
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


def _groups(config: OptimizerConfig, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the parameter groups, each with a learning rate of its own on the device."""
    device = parts[0].parameters[0].device
    return [
        {
            "params": list(part.parameters),
            "weight_decay": part.weight_decay,
            "lr": torch.tensor(config.lr * part.lr_ratio, device=device),
        }
        for part in parts
    ]
