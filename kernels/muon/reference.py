"""Define `muon_step` in plain PyTorch: the matrices of one shape go through the iteration together."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

EPS = 1e-7  # smallest norm that an update or a weight is divided by


class MuonSettings(NamedTuple):
    """The constants of Muon.

    Attributes:
        momentum: fraction of the running mean of the gradients that a step keeps.
        nesterov: use Nesterov's form of momentum.
        steps: number of iterations that orthogonalise an update, at least 1.
        coefficients: a, b and c of an iteration.
    """

    momentum: float
    nesterov: bool
    steps: int
    coefficients: tuple[float, float, float]


def orthogonalise(
    matrices: torch.Tensor,
    steps: int,
    coefficients: tuple[float, float, float],
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """Replace the singular values of each matrix by ones, approximately.

    After five iterations with the usual coefficients they are between about 0.7 and 1.2, or lower if they
    were tiny compared with the largest one. The method is a Newton-Schulz iteration without any
    decomposition: x ← a x + b (x xᵀ) x + c (x xᵀ)² x (Keller Jordan, "Muon: an optimizer for hidden layers in
    neural networks", 2024).

    Args:
        matrices: (N, rows, columns), any floating type.
        steps: number of iterations.
        coefficients: a, b and c.
        dtype: of the iteration; bfloat16 is precise enough.

    Returns:
        The same shape, of `dtype`.
    """
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_step_reference(  # noqa: PLR0913
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    lr: torch.Tensor,
    weight_decay: float,
    settings: MuonSettings,
    found_inf: torch.Tensor | None = None,
    renormalise: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Do the same as `muon_step`, with weights of any floating type; `dtype` is that of the iteration."""
    proceeds = torch.ones_like(lr, dtype=torch.bool) if found_inf is None else (found_inf <= 0).reshape(())
    shapes = list(dict.fromkeys(weight.shape for weight in weights))
    for shape in shapes:
        same = [number for number, weight in enumerate(weights) if weight.shape == shape]
        some_weights, some_momenta, some_gradients = (
            [tensors[number] for number in same] for tensors in (weights, momenta, gradients)
        )
        # the order of the columns does not matter, so they are read in their order in memory
        weight = some_weights[0]
        last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
        update = _update_momentum(some_momenta, some_gradients, settings, proceeds, last)
        flat = update.flatten(2)
        flat = orthogonalise(flat, settings.steps, settings.coefficients, dtype).to(flat.dtype)
        scale = math.sqrt(max(1.0, flat.shape[1] / flat.shape[2]))
        update = (flat * scale).reshape(update.shape)
        if renormalise is not None:
            _renormalise(some_weights, proceeds & (renormalise > 0))
        old = _stack(some_weights, last)
        new = old - lr * (update + weight_decay * old)
        torch._foreach_copy_(some_weights, _unstack(torch.where(proceeds, new, old), last))


def _update_momentum(
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    settings: MuonSettings,
    proceeds: torch.Tensor,
    channels_last: bool,
) -> torch.Tensor:
    """Update the momenta of one shape, if the step proceeds, and return the updates as one tensor."""
    gradient, old = (_stack(tensors, channels_last) for tensors in (gradients, momenta))
    new = torch.where(proceeds, old.lerp(gradient, 1 - settings.momentum), old)
    torch._foreach_copy_(list(momenta), _unstack(new, channels_last))
    return gradient.lerp(new, settings.momentum) if settings.nesterov else new


def _renormalise(weights: Sequence[torch.Tensor], switch: torch.Tensor) -> None:
    """Give matrices of one shape the norm sqrt(rows), where SWITCH is true."""
    norms = torch.stack(torch._foreach_norm(list(weights)))
    factors = math.sqrt(len(weights[0])) / norms.clamp(min=EPS)
    torch._foreach_mul_(list(weights), list(torch.where(switch, factors, 1.0)))


def _stack(weights: Sequence[torch.Tensor], channels_last: bool) -> torch.Tensor:
    """Stack weights of one shape; with CHANNELS_LAST their input channels become the last dimension."""
    return torch.stack([weight.permute(0, 2, 3, 1) if channels_last else weight for weight in weights])


def _unstack(stacked: torch.Tensor, channels_last: bool) -> list[torch.Tensor]:
    """Undo `_stack`."""
    return list(stacked.permute(0, 1, 4, 2, 3) if channels_last else stacked)
