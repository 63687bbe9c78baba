"""Compute 2x2 max-pool, training-mode batch norm and activation: two launches forward, two backward.

    y = activation(batch_norm(max_pool2d(x, 2)))

Forward, one launch reads x once: it writes the maxima and sums them up for the statistics. Backward, one
launch writes the gradient by x, of which each window gets one value and three zeros. Odd heights and widths
lose their last row or column, as in `F.max_pool2d`. Of equal maxima the first one gets the gradient, and a
NaN is a maximum.

Bytes moved, in passes over a pooled activation, of which x is four or a few more: 7 forward and 8 backward.
They are, forward, x, and the pooled x written and read, and y; backward, dy and the pooled x twice, and dx.
The place of each maximum takes two bits, written forward and read backward, an eighth of a pass each in half
precision. A byte would take a half each. To compare again would read x again, four passes.

See `kernels/batch_norm_act/op.py` for precision, `torch.compile` and CUDA graphs.
"""

import torch

from kernels.arguments import Activation, Norm, check_activation, prepare_gradients
from kernels.batch_norm_act.op import checked
from kernels.pool_norm_act.backward import backward_outputs, launch_backward
from kernels.pool_norm_act.forward import forward_outputs, launch_forward
from kernels.pool_norm_act.reference import backward_reference, forward_reference


def pool_norm_act(
    x: torch.Tensor, norm: Norm, activation: Activation = "relu", momentum: float = 0.1, eps: float = 1e-5
) -> torch.Tensor:
    """Return activation(batch_norm(max_pool2d(x, 2))), normalised by the batch; update running statistics.

    Differentiable once by x, weight and bias. On a GPU the kernels run; on a CPU the reference, which is
    slower than PyTorch's own functions. Autocast changes nothing. The first call for a shape compiles
    kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32, H and W at least 2; channels_last, otherwise it is
            copied.
        norm: (C,) contiguous float32 each. The running statistics move towards those of the batch.
        activation: `none`, `relu`, `silu` or `gelu` (`kernels/activations.py`).
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, C, H // 2, W // 2) of the dtype of x, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, there is no such activation, or a channel has only one
            window: it has no unbiased variance.
    """
    return _PoolNormAct.apply(False, _checked(x, norm, activation), *norm, activation, momentum, eps)


def pool_norm_act_twice(
    x: torch.Tensor, norm: Norm, activation: Activation = "relu", momentum: float = 0.1, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `pool_norm_act` twice, in the same memory; see `batch_norm_act_twice`."""
    return _PoolNormAct.apply(True, _checked(x, norm, activation), *norm, activation, momentum, eps)


def _checked(x: torch.Tensor, norm: Norm, activation: str) -> torch.Tensor:
    """Return x in channels_last, or raise a ValueError."""
    check_activation(activation)
    x, _ = checked(x, norm, None)
    check_windows(x)
    return x


def check_windows(x: torch.Tensor) -> None:
    """Raise a ValueError if x, (N, C, H, W), has only one window: a channel has no unbiased variance."""
    num_windows = len(x) * (x.shape[2] // 2) * (x.shape[3] // 2)
    if num_windows < 2:
        raise ValueError(f"x must have more than one window of 2x2 pixels, not the shape {tuple(x.shape)}")


@torch.library.custom_op(
    "quickres::pool_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(  # noqa: PLR0913
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(weight, bias, running_mean, running_var)
    return launch_forward(x, norm, activation, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, *rest):
    return forward_outputs(x)


_backward_op = torch.library.custom_op(
    "quickres::pool_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(  # noqa: PLR0913
    gradient, second_gradient, pooled, places, weight, bias, statistics, activation, height, width
):
    return backward_outputs(pooled, weight, height, width)


class _PoolNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        x, weight, bias, _, _, activation, *_ = arguments
        y, pooled, places, statistics = _forward_op(*arguments)
        ctx.save_for_backward(pooled, places, weight, bias, statistics)
        ctx.activation, ctx.size = activation, x.shape[2:]
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 9
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors, ctx.activation, *ctx.size)
        return (None, *gradients, None, None, None, None, None)
