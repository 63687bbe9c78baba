"""Define `norm_act_inference` in plain PyTorch, and implement its operator on the CPU."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from kernels.batch_norm_act.reference import activation_reference


def norm_act_inference_reference(
    x: torch.Tensor,
    norm: Sequence[torch.Tensor],
    residual: torch.Tensor | None = None,
    residual_norm: Sequence[torch.Tensor] = (),
    activation: str = "relu",
    eps: float = 1e-5,
    pool: bool = False,
) -> torch.Tensor:
    """Return activation(norm(x) + residual), rounded once, channels_last. Arguments as of the op.

    Arithmetic is in float32, or in float64 for float64 activations.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    z = _normalised(functional.max_pool2d(x, 2) if pool else x, norm, eps, wide)
    if residual is not None:
        z = z + (_normalised(residual, residual_norm, eps, wide) if residual_norm else residual.to(wide))
    return activation_reference(z, activation).to(x.dtype).contiguous(memory_format=torch.channels_last)


def _normalised(x: torch.Tensor, norm: Sequence[torch.Tensor], eps: float, wide: torch.dtype) -> torch.Tensor:
    weight, bias, mean, var = norm
    return functional.batch_norm(x.to(wide), mean, var, weight, bias, training=False, eps=eps)
