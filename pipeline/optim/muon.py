"""Implements Muon: orthogonalised momentum for a network's convolutions, fused SGD for all other weights.

torch's own Muon takes only matrices, no convolutions. It does not know the scaler's found_inf, and it reads
the learning rate back to the host, so that its step cannot be captured in a CUDA graph.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange

from pipeline.config import MuonConfig

_EPS = 1e-7


def orthogonalise(
    matrices: torch.Tensor, steps: int, coefficients: tuple[float, float, float]
) -> torch.Tensor:
    """Replace the singular values of each matrix by ones, approximately.

    After five iterations with the usual coefficients they are between about 0.7 and 1.2, or lower if they
    were tiny compared with the largest one. The method is a Newton-Schulz iteration in bfloat16, without any
    decomposition: x ← a x + b (x xᵀ) x + c (x xᵀ)² x (Keller Jordan, "Muon: an optimizer for hidden layers in
    neural networks", 2024).

    Args:
        matrices: (N, rows, columns), any floating type.
        steps: number of iterations.
        coefficients: a, b and c.

    Returns:
        The same shape, bfloat16.
    """
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.SGD):
    """Muon (Jordan 2024) for weights of two or more dimensions, as matrices with one row per output channel.

    The update is that of `torch.optim.Muon`: Nesterov momentum as a running mean, orthogonalised, times
    sqrt(max(1, rows / columns)), with decoupled weight decay. All of it runs on the device, so that a step
    can be captured in a CUDA graph. Matrices of one shape go through the iteration together.

    The update is written into `.grad`, and fused SGD without momentum applies it. Fused SGD also skips the
    update if a gradient overflowed. Gradients must be unscaled before (`GradScaler.unscale_`).

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
        self._config = config
        plain = [{**group, "momentum": 0.0, "nesterov": False} for group in muon_groups]
        momentum = config.momentum if config.sgd_momentum is None else config.sgd_momentum
        super().__init__([*plain, *sgd_groups], momentum=momentum, nesterov=config.nesterov, fused=True)
        matrices = [matrix for group in plain for matrix in group["params"]]
        by_shape: dict[torch.Size, list[torch.Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
            self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        self._same_shape = list(by_shape.values())
        self._device = matrices[0].device
        on_gpu = self._device.type == "cuda"
        # one stream per weight shape: the kernels are small, so shapes run concurrently
        self._streams = [torch.cuda.Stream(self._device) for _ in self._same_shape] if on_gpu else []
        renormalises = config.renormalise_every is not None
        self.renormalise = torch.zeros((), device=self._device) if renormalises else None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        is_unscaled = getattr(self, "grad_scale", None) is None
        assert closure is None and is_unscaled, "gradients must be unscaled first"
        if self._streams:
            self._replace_gradients_concurrently(torch.cuda.current_stream(self._device))
        else:
            for matrices in self._same_shape:
                self._replace_gradients(matrices)
        super().step()

    def _replace_gradients_concurrently(self, current: torch.cuda.Stream) -> None:
        """Process each shape on its own stream, after all earlier and before all later work of CURRENT."""
        for stream, matrices in zip(self._streams, self._same_shape, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._replace_gradients(matrices)
        for stream in self._streams:
            current.wait_stream(stream)

    def _replace_gradients(self, same_shape: list[torch.Tensor]) -> None:
        """Write the updates of matrices of one shape into their gradients, if they have gradients."""
        found_inf = getattr(self, "found_inf", None)
        matrices = [matrix for matrix in same_shape if matrix.grad is not None]
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        if not gradients:
            return
        # the order of the columns does not matter, so they are read in their order in memory
        last = matrices[0].dim() == 4 and matrices[0].is_contiguous(memory_format=torch.channels_last)
        gradient, old_momentum = _stack(gradients, last), _stack(buffers, last)
        momentum = old_momentum.lerp(gradient, 1 - self._config.momentum)
        if found_inf is not None:
            momentum = torch.where(found_inf > 0, old_momentum, momentum)
        torch._foreach_copy_(buffers, _unstack(momentum, last))
        update = gradient.lerp(momentum, self._config.momentum) if self._config.nesterov else momentum
        flat = update.flatten(2)
        scale = math.sqrt(max(1.0, flat.shape[1] / flat.shape[2]))
        iterations, coefficients = self._config.newton_schulz_steps, self._config.newton_schulz_coefficients
        update = (orthogonalise(flat, iterations, coefficients) * scale).reshape(update.shape)
        torch._foreach_copy_(gradients, _unstack(update, last))
        if self.renormalise is not None:
            self._renormalise(matrices, self.renormalise, found_inf)

    def _renormalise(
        self, matrices: list[torch.Tensor], switch: torch.Tensor, found_inf: torch.Tensor | None
    ) -> None:
        """Give matrices of one shape the norm sqrt(rows), where SWITCH is 1 and no gradient overflowed."""
        norms = torch.stack(torch._foreach_norm(matrices))
        factors = math.sqrt(len(matrices[0])) / norms.clamp(min=_EPS)
        on = switch > 0 if found_inf is None else (switch > 0) & (found_inf <= 0)
        torch._foreach_mul_(matrices, list(torch.where(on, factors, 1.0)))


def _stack(weights: Sequence[torch.Tensor], channels_last: bool) -> torch.Tensor:
    """Stack weights; with CHANNELS_LAST their input channels become the last dimension."""
    return torch.stack([rearrange(w, "o i h w -> o h w i") if channels_last else w for w in weights])


def _unstack(stacked: torch.Tensor, channels_last: bool) -> list[torch.Tensor]:
    """Undo `_stack`."""
    return list(rearrange(stacked, "n o h w i -> n o i h w") if channels_last else stacked)
