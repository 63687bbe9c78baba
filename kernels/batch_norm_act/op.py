"""Training-mode batch norm, residual add and ReLU in two launches forward and two backward, which compile and capture.

    y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)

with the mean and the variance of each channel over the batch (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1). Arithmetic is
in float32; y is rounded once. The ReLU decides on the value before that rounding, forward and backward alike, and lets NaN pass, so
that an overflow reaches the loss scaler.

Bytes moved, in passes over an activation: 3 forward and 5 backward; with a residual 4 and 6, and two eighths of a byte an element for
the ReLU's mask. Without a residual the mask is computed again from x.

The operators are opaque to `torch.compile`, which neither fuses into them nor compiles their kernels. Autograd is a
`torch.autograd.Function` around them because PyTorch takes no derivative of an operator that changes its arguments.
"""

import torch

from kernels.batch_norm_act.backward import backward_outputs, launch_backward
from kernels.batch_norm_act.forward import forward_outputs, launch_forward
from kernels.batch_norm_act.reference import backward_reference, forward_reference

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.library.custom_op(
    "quickres::batch_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    relu: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_forward(x, residual, weight, bias, running_mean, running_var, relu, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, residual, weight, bias, running_mean, running_var, relu, momentum, eps):
    return forward_outputs(x, residual, relu)


@torch.library.custom_op("quickres::batch_norm_act_backward", mutates_args=(), device_types="cuda")
def _backward_op(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    x: torch.Tensor,
    mask: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    statistics: torch.Tensor,
    relu: bool,
    returns_dz: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_backward(gradient, second_gradient, x, mask, weight, bias, statistics, relu, returns_dz)


_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, x, mask, weight, bias, statistics, relu, returns_dz):
    return backward_outputs(x, weight, returns_dz)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, running_mean, running_var, relu, momentum, eps, twice):
        y, statistics, mask = _forward_op(
            x, residual, weight, bias, running_mean, running_var, relu, momentum, eps
        )
        ctx.save_for_backward(x, mask, weight, bias, statistics)
        ctx.has_residual = residual is not None
        ctx.relu = relu
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradient is None:
            gradient, second_gradient = second_gradient, None
        if gradient is None:
            return (None,) * 10
        x, mask, weight, bias, statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if second_gradient is not None:
            second_gradient = second_gradient.contiguous(memory_format=torch.channels_last)
        mask = mask if ctx.relu and ctx.has_residual else None
        needs_dz = second_gradient is not None or mask is not None
        dx, dweight, dbias, dz = _backward_op(
            gradient, second_gradient, x, mask, weight, bias, statistics, ctx.relu, needs_dz
        )
        by_residual = (dz if needs_dz else gradient) if ctx.has_residual else None
        return dx, by_residual, dweight, dbias, None, None, None, None, None, None


def batch_norm_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None = None,
    relu: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(x) + residual), normalised by the batch, and move the running statistics towards those of the batch.

    Differentiable once by x, weight, bias and residual. On a GPU the kernels run, on a CPU the reference, which is slower than
    `F.batch_norm` there. Autocast changes nothing. The first call for a shape compiles kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        weight: (C,) float32.
        bias: (C,) float32.
        running_mean: (C,) float32; becomes (1 - momentum) * running_mean + momentum * mean.
        running_var: (C,) float32; likewise, with the unbiased variance.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied. None adds nothing.
        relu: whether negative sums become 0.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, C, H, W) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or there is one value a channel, which has no unbiased variance.
    """
    x, residual = checked(x, weight, bias, running_mean, running_var, residual)
    return _BatchNormAct.apply(
        x, residual, weight, bias, running_mean, running_var, relu, momentum, eps, False
    )


def batch_norm_act_twice(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    residual: torch.Tensor | None = None,
    relu: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `batch_norm_act` twice, in the same memory, for two users, such as a convolution and a shortcut past it.

    Backward then gets the gradients of the two one by one and adds them as it reads them, which saves autograd's pass to add them.
    """
    x, residual = checked(x, weight, bias, running_mean, running_var, residual)
    return _BatchNormAct.apply(
        x, residual, weight, bias, running_mean, running_var, relu, momentum, eps, True
    )


def checked(x, weight, bias, running_mean, running_var, residual) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return x and residual in channels_last, once everything is of the right shape and dtype."""
    if x.ndim != 4 or x.dtype not in _DTYPES:
        raise ValueError(
            f"x must be float16, bfloat16 or float32 (N, C, H, W), not {x.dtype} {tuple(x.shape)}"
        )
    if x.numel() <= x.shape[1]:
        raise ValueError(f"x must have more than one value a channel, which {tuple(x.shape)} has not")
    for name, vector in {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }.items():
        if vector.shape != x.shape[1:2] or vector.dtype is not torch.float32 or not vector.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous float32 ({x.shape[1]},), not {vector.dtype} {tuple(vector.shape)}"
            )
    if residual is not None:
        if residual.shape != x.shape or residual.dtype is not x.dtype:
            raise ValueError(
                f"residual must be {x.dtype} {tuple(x.shape)} as x, not {residual.dtype} {tuple(residual.shape)}"
            )
        residual = residual.contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last), residual
