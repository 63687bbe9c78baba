"""Two training-mode batch norms, their sum and ReLU, as at the end of a block with a projection shortcut.

    y = relu(batch_norm(x) + batch_norm(residual))

The kernels are those of `batch_norm_act.py`, which normalise the residual as they read it. Against one op for each norm that saves two
passes over an activation forward, writing and reading the normalised shortcut, and two backward, each reading dz.
"""

import torch

from kernels.batch_norm_act.backward import dual_backward_outputs, launch_dual_backward
from kernels.batch_norm_act.forward import forward_outputs, launch_forward
from kernels.batch_norm_act.op import checked
from kernels.dual_batch_norm_act.reference import dual_backward_reference, dual_forward_reference

Norm = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]  # weight, bias, running mean, running variance
_RUNNING = ("running_mean", "running_var", "residual_running_mean", "residual_running_var")


@torch.library.custom_op("quickres::dual_batch_norm_act", mutates_args=_RUNNING, device_types="cuda")
def _forward_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor,
    residual_weight: torch.Tensor,
    residual_bias: torch.Tensor,
    residual_running_mean: torch.Tensor,
    residual_running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    residual_norm = (residual_weight, residual_bias, residual_running_mean, residual_running_var)
    return launch_forward(
        x, residual, weight, bias, running_mean, running_var, True, momentum, eps, residual_norm
    )


_forward_op.register_kernel("cpu")(dual_forward_reference)


@_forward_op.register_fake
def _fake_forward(x, weight, bias, running_mean, running_var, residual, *rest):
    return forward_outputs(x, residual, True, True)


@torch.library.custom_op("quickres::dual_batch_norm_act_backward", mutates_args=(), device_types="cuda")
def _backward_op(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual_weight: torch.Tensor,
    statistics: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_dual_backward(
        gradient, second_gradient, x, residual, mask, weight, bias, residual_weight, statistics
    )


_backward_op.register_kernel("cpu")(dual_backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, x, residual, mask, weight, bias, residual_weight, statistics):
    return dual_backward_outputs(x, weight)


class _DualBatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, residual, residual_weight, *rest):
        *arguments, twice = rest
        y, statistics, mask = _forward_op(
            x, weight, bias, running_mean, running_var, residual, residual_weight, *arguments
        )
        ctx.save_for_backward(x, residual, mask, weight, bias, residual_weight, statistics)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradient is None:
            gradient, second_gradient = second_gradient, None
        if gradient is None:
            return (None,) * 13
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if second_gradient is not None:
            second_gradient = second_gradient.contiguous(memory_format=torch.channels_last)
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors)
        return (*gradients[:3], None, None, *gradients[3:], None, None, None, None, None)


def dual_batch_norm_act(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor,
    residual_norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(x) + batch_norm(residual)), and move the running statistics towards those of the batch.

    As two calls of `batch_norm_act`, but the normalised residual is not rounded.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: weight, bias, running mean and running variance of x, (C,) float32 each.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied.
        residual_norm: those of the residual.
        momentum: share of the batch in the running statistics of both.
        eps: added to both variances.

    Returns:
        (N, C, H, W) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or there is one value a channel, which has no unbiased variance.
    """
    return _DualBatchNormAct.apply(*_checked(x, norm, residual, residual_norm), momentum, eps, False)


def dual_batch_norm_act_twice(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor,
    residual_norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `dual_batch_norm_act` twice, in the same memory, for two users; see `batch_norm_act_twice`."""
    return _DualBatchNormAct.apply(*_checked(x, norm, residual, residual_norm), momentum, eps, True)


def _checked(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor, residual_norm: Norm
) -> tuple[torch.Tensor | None, ...]:
    checked_x, checked_residual = checked(x, *norm, residual)
    checked(residual, *residual_norm, None)
    return checked_x, *norm, checked_residual, *residual_norm
