"""Compute training-mode batch norm, residual add and ReLU: two launches forward, two backward.

    y = relu((x - mean) / sqrt(var + eps) * weight + bias + residual)

The mean and the variance of each channel are those of the batch (Ioffe and Szegedy 2015, arXiv:1502.03167,
algorithm 1). Arithmetic is in float32; y is rounded once. Forward and backward, the ReLU decides on the value
before that rounding. It lets NaN pass, so that an overflow reaches the loss scaler.

Bytes moved, in passes over an activation: 3 forward and 5 backward; with a residual 4 and 6, and two eighths
of a byte an element for the ReLU's mask. Without a residual the mask is computed again from x.

The operators work under `torch.compile` and in CUDA graphs. They are opaque to `torch.compile`, which neither
fuses into them nor compiles their kernels. Autograd is a `torch.autograd.Function` around the operators,
because PyTorch takes no derivative of an operator that changes its arguments.
"""

import torch

from kernels.arguments import DTYPES, Norm, check_norm, prepare_gradients
from kernels.batch_norm_act.backward import backward_outputs, launch_backward
from kernels.batch_norm_act.forward import forward_outputs, launch_forward
from kernels.batch_norm_act.reference import backward_reference, forward_reference


def batch_norm_act(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    relu: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(x) + residual), normalised by the batch, and update the running statistics.

    Differentiable once by x, weight, bias and residual. On a GPU the kernels run; on a CPU the reference,
    which is slower than `F.batch_norm`. Autocast changes nothing. The first call for a shape compiles
    kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: (C,) contiguous float32 each. The running statistics move towards those of the batch.
        residual: (N, C, H, W) of the dtype of x; channels_last, otherwise it is copied. None adds nothing.
        relu: True if negative sums become 0.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, C, H, W) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or a channel has only one value: it has no unbiased
            variance.
    """
    x, residual = checked(x, norm, residual)
    return _BatchNormAct.apply(False, x, residual, *norm, relu, momentum, eps)


def batch_norm_act_twice(
    x: torch.Tensor,
    norm: Norm,
    residual: torch.Tensor | None = None,
    relu: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `batch_norm_act` twice, in the same memory, for two users.

    Such users are a convolution and a shortcut past it.
    Backward then gets the gradients of the two uses one by one and adds them as it reads them, which saves
    autograd's pass to add them.
    """
    x, residual = checked(x, norm, residual)
    return _BatchNormAct.apply(True, x, residual, *norm, relu, momentum, eps)


def checked(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, name: str = "norm"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return x and residual in channels_last, or raise a ValueError for a wrong shape or dtype."""
    if x.ndim != 4 or x.dtype not in DTYPES:
        raise ValueError(
            f"x must be float16, bfloat16 or float32 (N, C, H, W), not {x.dtype} {tuple(x.shape)}"
        )
    if x.numel() <= x.shape[1]:
        raise ValueError(f"x must have more than one value a channel, not the shape {tuple(x.shape)}")
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
    relu: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(weight, bias, running_mean, running_var)
    return launch_forward(x, residual, norm, relu, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, residual, weight, bias, running_mean, running_var, relu, momentum, eps):  # noqa: PLR0913
    return forward_outputs(x, residual, relu)


# The kernel's launch function has the operator's signature, which PyTorch reads from its annotations.
_backward_op = torch.library.custom_op(
    "quickres::batch_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, x, mask, weight, bias, statistics, relu, returns_dz):  # noqa: PLR0913
    return backward_outputs(x, weight, returns_dz)


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        x, residual, weight, bias, _, _, relu, *_ = arguments
        y, statistics, mask = _forward_op(*arguments)
        ctx.save_for_backward(x, mask, weight, bias, statistics)
        ctx.has_residual = residual is not None
        ctx.relu = relu
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 10
        x, mask, weight, bias, statistics = ctx.saved_tensors
        mask = mask if ctx.relu and ctx.has_residual else None
        needs_dz = second_gradient is not None or mask is not None
        dx, dweight, dbias, dz = _backward_op(
            gradient, second_gradient, x, mask, weight, bias, statistics, ctx.relu, needs_dz
        )
        by_residual = (dz if needs_dz else gradient) if ctx.has_residual else None
        return None, dx, by_residual, dweight, dbias, None, None, None, None, None
