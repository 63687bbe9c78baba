"""Compute two training-mode batch norms, their sum and ReLU, for a block with a projection shortcut.

    y = relu(batch_norm(x) + batch_norm(residual))

The kernels are those of `batch_norm_act`, which normalise the residual as they read it. Compared with one op
for each norm this saves four passes over an activation: two forward, writing and reading the normalised
shortcut, and two backward, each reading dz.
"""

import torch

from kernels.arguments import Norm, prepare_gradients
from kernels.batch_norm_act.op import checked
from kernels.dual_batch_norm_act.backward import backward_outputs, launch_backward
from kernels.dual_batch_norm_act.forward import forward_outputs, launch_forward
from kernels.dual_batch_norm_act.reference import dual_backward_reference, dual_forward_reference

_RUNNING = ("running_mean", "running_var", "residual_running_mean", "residual_running_var")


def dual_batch_norm_act(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor,
    residual_norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(x) + batch_norm(residual)), and update the running statistics of both norms.

    The result is that of two calls of `batch_norm_act`, but the normalised residual is not rounded.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: of x, (C,) contiguous float32 each.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied.
        residual_norm: of the residual, likewise.
        momentum: weight of the batch in the running statistics of both norms.
        eps: added to both variances.

    Returns:
        (N, C, H, W) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or a channel has only one value: it has no unbiased
            variance.
    """
    arguments = _checked(x, norm, residual, residual_norm)
    return _DualBatchNormAct.apply(False, *arguments, momentum, eps)


def dual_batch_norm_act_twice(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor,
    residual_norm: Norm,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `dual_batch_norm_act` twice, in the same memory; see `batch_norm_act_twice`."""
    arguments = _checked(x, norm, residual, residual_norm)
    return _DualBatchNormAct.apply(True, *arguments, momentum, eps)


def _checked(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor, residual_norm: Norm
) -> tuple[torch.Tensor | None, ...]:
    """Return the tensors in the order of the operator, or raise a ValueError for a wrong shape or dtype."""
    checked_x, checked_residual = checked(x, norm, residual)
    checked(residual, residual_norm, None, "residual_norm")
    return checked_x, *norm, checked_residual, *residual_norm


@torch.library.custom_op("quickres::dual_batch_norm_act", mutates_args=_RUNNING, device_types="cuda")
def _forward_op(  # noqa: PLR0913
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
    norm = Norm(weight, bias, running_mean, running_var)
    residual_norm = Norm(residual_weight, residual_bias, residual_running_mean, residual_running_var)
    return launch_forward(x, norm, residual, residual_norm, momentum, eps)


_forward_op.register_kernel("cpu")(dual_forward_reference)


@_forward_op.register_fake
def _fake_forward(x, *rest):
    return forward_outputs(x)


_backward_op = torch.library.custom_op(
    "quickres::dual_batch_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(dual_backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, x, residual, mask, weight, *rest):
    return backward_outputs(x, weight)


class _DualBatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        x, weight, bias, _, _, residual, residual_weight, *_ = arguments
        y, statistics, mask = _forward_op(*arguments)
        ctx.save_for_backward(x, residual, mask, weight, bias, residual_weight, statistics)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 13
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors)
        return (None, *gradients[:3], None, None, *gradients[3:], None, None, None, None)
