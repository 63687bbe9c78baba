"""Implements Muon: orthogonalised momentum for a network's convolutions, fused SGD for all other weights.

torch's own Muon takes only matrices, no convolutions. It does not know the scaler's found_inf, and it reads
the learning rate back to the host, so that its step cannot be captured in a CUDA graph.
"""

from collections.abc import Sequence
from typing import Any

import torch

from kernels.muon.reference import MuonSettings, muon_step_reference
from pipeline.config import MuonConfig
from pipeline.optim.plain import Sgd


class Muon(Sgd):
    """Muon (Jordan 2024) for weights of two or more dimensions, as matrices with one row per output channel.

    The update is that of `torch.optim.Muon`: Nesterov momentum as a running mean, orthogonalised, times
    sqrt(max(1, rows / columns)), with decoupled weight decay. All of it runs on the device, so that a step
    can be captured in a CUDA graph. On a GPU the kernels of `kernels/muon` take all matrices of a parameter
    group together.

    All other weights move by fused SGD. An update is skipped if a gradient overflowed. Gradients must be
    unscaled before (`GradScaler.unscale_`).

    While the device scalar `renormalise` is 1, a step first gives each matrix the norm sqrt(rows), as in
    airbench94 (github.com/KellerJordan/cifar10-airbench). It replaces weight decay: the length of the weights
    then does not change the function of a network with batch norm, but it does change the effective step.

    Args:
        muon_groups: parameter groups of the matrices, each with `lr`, a device scalar, and `weight_decay`.
        sgd_groups: the same for SGD with momentum.
        config: momentum, iterations and coefficients.

    Attributes:
        renormalise: float32 scalar, 0 at first. Its owner changes it in place; None if the config has no
            `optimizer.renormalise_every`.
    """

    def __init__(
        self, muon_groups: Sequence[dict[str, Any]], sgd_groups: Sequence[dict[str, Any]], config: MuonConfig
    ):
        plain = [{**group, "momentum": 0.0, "nesterov": False} for group in muon_groups]
        momentum = config.momentum if config.sgd_momentum is None else config.sgd_momentum
        super().__init__([*plain, *sgd_groups], momentum=momentum, nesterov=config.nesterov, fused=True)
        self._num_muon_groups = len(plain)
        self._settings = MuonSettings(
            config.momentum,
            config.nesterov,
            config.newton_schulz_steps,
            config.newton_schulz_coefficients,
        )
        matrices = [matrix for group in plain for matrix in group["params"]]
        for matrix in matrices:
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        renormalises = config.renormalise_every is not None
        self.renormalise = torch.zeros((), device=matrices[0].device) if renormalises else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        is_unscaled = getattr(self, "grad_scale", None) is None
        assert closure is None and is_unscaled, "gradients must be unscaled first"
        groups = self.param_groups
        for group in groups[: self._num_muon_groups]:
            self._move(group)
        self.param_groups = groups[self._num_muon_groups :]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _move(self, group: dict[str, Any]) -> None:
        """Move the matrices of a parameter group that have gradients."""
        matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices]
        found_inf = getattr(self, "found_inf", None)
        if matrices and matrices[0].is_cuda:
            from kernels.muon.op import muon_step as step  # it imports Triton
        else:
            step = muon_step_reference
        step(
            matrices,
            momenta,
            gradients,
            group["lr"],
            group["weight_decay"],
            self._settings,
            found_inf,
            self.renormalise,
        )
