"""Compute training-mode batch norm, residual add and activation: two launches forward, two backward.

    y = activation((x - mean) / sqrt(var + eps) * weight + bias + residual)

The mean and the variance of each channel are those of the batch (Ioffe and Szegedy 2015, arXiv:1502.03167,
algorithm 1). Arithmetic is in float32; y is rounded once. Forward and backward, the activation is that of the
value before that rounding. It lets NaN pass, so that an overflow reaches the loss scaler.

Bytes moved, in passes over an activation: 3 forward and 5 backward. Without a residual the slope of the
activation is computed again from x. With a residual there are 4 and 6, and:
- ReLU: two eighths of a byte an element for its mask, written forward and read backward;
- SiLU and GELU: 7 backward, because the residual is read again. A slope that is saved in one byte would move
  the same bytes in half precision, take memory, and have 8 bits.

A weight that needs no gradient costs nothing: the sum over the batch that is its gradient is also a term of
the gradient by x.

The operators work under `torch.compile` and in CUDA graphs. They are opaque to `torch.compile`, which neither
fuses into them nor compiles their kernels. Autograd is a `torch.autograd.Function` around the operators,
because PyTorch takes no derivative of an operator that changes its arguments.
"""

import torch

from kernels.arguments import (
    DTYPES,
    SMOOTH_ACTIVATIONS,
    Activation,
    Norm,
    check_activation,
    check_norm,
    prepare_gradients,
)
from kernels.batch_norm_act.backward import backward_outputs, launch_backward
from kernels.batch_norm_act.forward import forward_outputs, launch_forward
from kernels.batch_norm_act.reference import backward_reference, forward_reference


def batch_norm_act(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return activation(batch_norm(x) + residual), normalised by the batch, and update running statistics.

    Differentiable once by x, weight, bias and residual. On a GPU the kernels run; on a CPU the reference,
    which is slower than `F.batch_norm`. Autocast changes nothing. The first call for a shape compiles
    kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: (C,) contiguous float32 each. The running statistics move towards those of the batch.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied. None adds nothing.
        activation: `none`, `relu`, `silu` or `gelu` (`kernels/activations.py`).
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, C, H, W) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, there is no such activation, or a channel has only one
            value: it has no unbiased variance.
    """
    check_activation(activation)
    x, residual = checked(x, norm, residual)
    return _BatchNormAct.apply(False, x, residual, *norm, activation, momentum, eps)


def batch_norm_act_twice(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `batch_norm_act` twice, in the same memory, for two users.

    Such users are a convolution and a shortcut past it.
    Backward then gets the gradients of the two uses one by one and adds them as it reads them, which saves
    autograd's pass to add them.
    """
    check_activation(activation)
    x, residual = checked(x, norm, residual)
    return _BatchNormAct.apply(True, x, residual, *norm, activation, momentum, eps)


def checked(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, name: str = "norm", least: int = 2
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return x and residual in channels_last, or raise a ValueError for a wrong shape or dtype.

    x must have `least` values a channel.
    """
    if x.ndim != 4 or x.dtype not in DTYPES:
        raise ValueError(
            f"x must be float16, bfloat16 or float32 (N, C, H, W), not {x.dtype} {tuple(x.shape)}"
        )
    if x.numel() < max(least * x.shape[1], 1):
        count = "more than one value" if least > 1 else "a value"
        raise ValueError(f"x must have {count} a channel, not the shape {tuple(x.shape)}")
    check_norm(norm, x.shape[1], name)
    if residual is not None:
        if residual.shape != x.shape or residual.dtype is not x.dtype:
            raise ValueError(
                f"residual must be {x.dtype} {tuple(x.shape)} as x, "
                f"not {residual.dtype} {tuple(residual.shape)}"
            )
        residual = residual.contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last), residual


@torch.library.custom_op(
    "quickres::batch_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(  # noqa: PLR0913
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(weight, bias, running_mean, running_var)
    return launch_forward(x, residual, norm, activation, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, residual, weight, bias, running_mean, running_var, activation, momentum, eps):  # noqa: PLR0913
    return forward_outputs(x, residual, activation)


# The kernel's launch function has the operator's signature, which PyTorch reads from its annotations.
_backward_op = torch.library.custom_op(
    "quickres::batch_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(  # noqa: PLR0913
    gradient, second_gradient, x, residual, mask, weight, bias, statistics, activation, returns_dz
):
    return backward_outputs(x, weight, returns_dz)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        x, residual, weight, bias, _, _, activation, *_ = arguments
        y, statistics, mask = _forward_op(*arguments)
        has_residual = residual is not None
        ctx.save_for_backward(
            x,
            residual if activation in SMOOTH_ACTIVATIONS else None,
            mask if has_residual and activation == "relu" else None,
            weight,
            bias,
            statistics,
        )
        ctx.has_residual, ctx.activation = has_residual, activation
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 10
        needs_dz = second_gradient is not None or (ctx.has_residual and ctx.activation != "none")
        dx, dweight, dbias, dz = _backward_op(
            gradient, second_gradient, *ctx.saved_tensors, ctx.activation, needs_dz
        )
        by_residual = (dz if needs_dz else gradient) if ctx.has_residual else None
        return None, dx, by_residual, dweight, dbias, None, None, None, None, None
