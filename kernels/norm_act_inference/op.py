"""Compute batch norm with running statistics, residual add and activation in one launch, for inference.

    y = activation((x - running_mean) / sqrt(running_var + eps) * weight + bias + residual)

The residual may be normalised too, as by a projection shortcut, and x may go through a 2x2 max-pool first.
Arithmetic is in float32; y is rounded once, whereas PyTorch's own functions round after each of these steps.
Every activation is read or written once. There is no gradient.
"""

from collections.abc import Sequence

import torch

from kernels.arguments import Activation, Norm, check_activation
from kernels.batch_norm_act.op import checked
from kernels.norm_act_inference.forward import forward_output, launch
from kernels.norm_act_inference.reference import norm_act_inference_reference


def norm_act_inference(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    residual_norm: Norm | None = None,
    activation: Activation = "relu",
    eps: float = 1e-5,
    pool: bool = False,
) -> torch.Tensor:
    """Return activation(norm(x) + residual), normalised by running statistics, which do not change.

    On a GPU the kernel runs, on a CPU the reference. Autocast changes nothing. The first call for a shape
    compiles a kernel: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: (C,) contiguous float32 each.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied. None adds nothing.
        residual_norm: norm of the residual; None adds it as it is.
        activation: `none`, `relu`, `silu` or `gelu` (`kernels/activations.py`).
        eps: added to the variances.
        pool: first take the maxima of 2x2 windows of x; there is no residual then.

    Returns:
        (N, C, H, W), with `pool` (N, C, H // 2, W // 2), of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, there is no such activation, an argument is given that
            excludes another one, or y would have no element.
    """
    check_activation(activation)
    x, residual = checked(x, norm, residual, least=1)
    if residual_norm is not None:
        if residual is None:
            raise ValueError("residual_norm needs a residual")
        checked(residual, residual_norm, None, "residual_norm", least=1)
    if pool and residual is not None:
        raise ValueError("pool and residual exclude each other")
    if pool and min(x.shape[2:]) < 2:
        raise ValueError(f"x must have 2x2 pixels or more for a pool, not the shape {tuple(x.shape)}")
    return _op(x, list(norm), residual, list(residual_norm or ()), activation, eps, pool)


@torch.library.custom_op("quickres::norm_act_inference", mutates_args=(), device_types="cuda")
def _op(
    x: torch.Tensor,
    norm: Sequence[torch.Tensor],
    residual: torch.Tensor | None,
    residual_norm: Sequence[torch.Tensor],
    activation: str,
    eps: float,
    pool: bool,
) -> torch.Tensor:
    return launch(x, norm, residual, residual_norm, activation, eps, pool)


_op.register_kernel("cpu")(norm_act_inference_reference)


@_op.register_fake
def _fake(x, norm, residual, residual_norm, activation, eps, pool):
    return forward_output(x, pool)
