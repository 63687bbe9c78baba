"""Compute training-mode batch norm, ReLU and 3x3 max-pool with stride 2: two launches forward, two backward.

    y = max_pool2d(relu(batch_norm(x)), 3, stride=2, padding=1)

These follow the first convolution of a ResNet for ImageNet (He et al. 2015, arXiv:1512.03385, table 1), whose
output is the largest activation of the network. Its norm is not written: what a window contributes is known
from its largest x, or smallest, for a negative weight. Of equal values the first one gets the gradient, and a
NaN is the largest.

Bytes moved, in passes over x, of which y is a quarter: 2.6 forward and 2.9 backward in half precision. They
are, forward, x twice, and y, the pooled x and the places, a byte each, written; backward, dy and the pooled x
for the sums, then dy, the places and x, and dx. With `batch_norm_act` and a max-pool of its own there are 1.6
passes more forward, and 3.4 more backward, without the indices of that max-pool.

See `kernels/batch_norm_act/op.py` for precision, `torch.compile` and CUDA graphs.
"""

import torch

from kernels.arguments import Norm, prepare_gradients
from kernels.batch_norm_act.op import checked
from kernels.norm_gradient import empty_gradients
from kernels.norm_relu_pool.backward import launch_backward
from kernels.norm_relu_pool.forward import forward_outputs, launch_forward
from kernels.norm_relu_pool.reference import backward_reference, forward_reference


def norm_relu_pool(x: torch.Tensor, norm: Norm, momentum: float = 0.1, eps: float = 1e-5) -> torch.Tensor:
    """Return max_pool2d(relu(batch_norm(x)), 3, 2, 1), normalised by the batch; update running statistics.

    Differentiable once by x, weight and bias. On a GPU the kernels run; on a CPU the reference, which is
    slower than PyTorch's own functions. Autocast changes nothing. The first call for a shape compiles
    kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: (C,) contiguous float32 each. The running statistics move towards those of the batch.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, C, ⌈H / 2⌉, ⌈W / 2⌉), channels_last, in the dtype of x.

    Raises:
        ValueError: a shape, dtype or layout is wrong, or a channel has a single value.
    """
    return _NormReluPool.apply(False, checked(x, norm, None)[0], *norm, momentum, eps)


def norm_relu_pool_twice(
    x: torch.Tensor, norm: Norm, momentum: float = 0.1, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `norm_relu_pool` twice, in the same memory; see `batch_norm_act_twice`."""
    return _NormReluPool.apply(True, checked(x, norm, None)[0], *norm, momentum, eps)


@torch.library.custom_op(
    "quickres::norm_relu_pool", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_forward(x, Norm(weight, bias, running_mean, running_var), momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, *rest):
    return forward_outputs(x)


_backward_op = torch.library.custom_op(
    "quickres::norm_relu_pool_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, x, pooled, places, weight, bias, statistics):  # noqa: PLR0913
    return empty_gradients(x, weight)


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        x, weight, bias, *_ = arguments
        y, pooled, places, statistics = _forward_op(*arguments)
        ctx.save_for_backward(x, pooled, places, weight, bias, statistics)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 8
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors)
        return (None, *gradients, None, None, None, None)
