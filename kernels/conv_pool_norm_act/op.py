"""Compute a 3x3 convolution, 2x2 max-pool, batch norm and activation, of an input that needs no gradient.

    y = activation(batch_norm(max_pool2d(conv2d(x, weight, padding=1), 2)))

Forward, one launch convolves and pools, and the output of the convolution is not written: after it the next
layer needs only the maximum of each window and its place. Backward, `pool_norm_act` writes the gradient by
the output of the convolution, of which three quarters are zeros, and the convolution reads it. Without a
gradient by x only the gradient by the weight needs it. Here that is computed from the gradient by the maximum
of each window, which has a quarter of the bytes, and the places of the maxima.

Bytes moved, in passes over a pooled activation: forward 3, and x, and backward 6, and x. They are, forward,
the pooled activation written and read, and y; backward, dy and the pooled activation twice, and the gradient
by the maxima, written and read. With `pool_norm_act` and cuDNN they are 11 and 12, and x: the output of the
convolution and the gradient by it, each written and read, are four passes or a few more.

The weight stays in float32: the forward launch rounds it as it reads it. Its gradient is summed in float32
and not rounded. See `kernels/pool_norm_act/op.py` for the rest, `torch.compile` and CUDA graphs.
"""

import torch

from kernels.arguments import Activation, Norm, check_activation, check_norm, prepare_gradients
from kernels.conv_pool_norm_act.backward import launch_backward, weight_gradient_output
from kernels.conv_pool_norm_act.forward import BLOCK_IN, MAX_CHANNELS, launch_forward
from kernels.conv_pool_norm_act.reference import backward_reference, forward_reference
from kernels.norm_gradient import Gradients
from kernels.pool_norm_act.forward import Outputs, forward_outputs
from kernels.pool_norm_act.op import check_windows

_HOPPER = 9  # compute capability of the GPUs whose tensor cores read operands from shared memory


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return True if the kernels are made for such arguments and this GPU; otherwise use `pool_norm_act`.

    They are made for half precision, C at most 32 and a multiple of 8, O at most 128 and a multiple of 16, an
    x without gradient, and GPUs of compute capability 9.

    Args:
        x: (N, C, H, W), input of `conv_pool_norm_act`.
        weight: (O, C, 3, 3).
    """
    half = _dtype(x) in (torch.float16, torch.bfloat16)
    fit = x.shape[1] <= BLOCK_IN and len(weight) <= MAX_CHANNELS  # the sums stay in registers
    whole = x.shape[1] % 8 == 0 and len(weight) % 16 == 0  # otherwise loads are short, and not asynchronous
    return half and fit and whole and not x.requires_grad and _on_hopper(x.device)


def _on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER


# as `torch.compiler.assume_constant_result` does, which imports the compiler
setattr(_on_hopper, "_dynamo_marked_constant", True)  # noqa: B010  # functions have no such attribute


def conv_pool_norm_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return activation(batch_norm(max_pool2d(conv2d(x, weight, padding=1), 2))); update running statistics.

    Differentiable once by the weights and the bias. x and weight are cast to the dtype of autocast, or
    without autocast to that of x. On a GPU the kernels run, on a CPU the reference. The first call for a
    shape compiles kernels: make it before a CUDA graph is captured.

    Args:
        x: (N, C, H, W) float16 or bfloat16, C at most 32, H and W at least 2; channels_last, otherwise it is
            copied.
        weight: (O, C, 3, 3) float16, bfloat16 or float32, O at most 128.
        norm: (O,) contiguous float32 each. The running statistics move towards those of the batch.
        activation: `none`, `relu`, `silu` or `gelu` (`kernels/activations.py`).
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (N, O, H // 2, W // 2) of the dtype of the convolution, channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, x requires a gradient, there is no such activation, or
            a channel has only one window.
    """
    x = _checked(x, weight, norm, activation)
    return _ConvPoolNormAct.apply(False, x, weight, *norm, activation, momentum, eps)


def conv_pool_norm_act_twice(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `conv_pool_norm_act` twice, in the same memory; see `batch_norm_act_twice`."""
    x = _checked(x, weight, norm, activation)
    return _ConvPoolNormAct.apply(True, x, weight, *norm, activation, momentum, eps)


def _checked(x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: str) -> torch.Tensor:
    """Return x in channels_last and in the dtype of the convolution, or raise a ValueError."""
    check_activation(activation)
    dtype = _dtype(x)
    good_shape = x.ndim == 4 and 1 <= x.shape[1] <= BLOCK_IN and x.numel() > 0
    if not good_shape or dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"x must be float16 or bfloat16 (N, C, H, W) with C at most {BLOCK_IN}, "
            f"not {dtype} {tuple(x.shape)}"
        )
    if x.requires_grad:
        raise ValueError("x must not require a gradient, which this op cannot compute; use pool_norm_act")
    if weight.shape[1:] != (x.shape[1], 3, 3) or not 1 <= len(weight) <= MAX_CHANNELS:
        raise ValueError(
            f"weight must be (O, {x.shape[1]}, 3, 3) with O at most {MAX_CHANNELS}, not {tuple(weight.shape)}"
        )
    check_norm(norm, len(weight))
    check_windows(x)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def _dtype(x: torch.Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype


@torch.library.custom_op(
    "quickres::conv_pool_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(  # noqa: PLR0913
    x: torch.Tensor,
    filters: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    activation: str,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(weight, bias, running_mean, running_var)
    return launch_forward(x, filters, norm, activation, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(x, filters, *rest) -> Outputs:
    return forward_outputs(x, len(filters))


_backward_op = torch.library.custom_op(
    "quickres::conv_pool_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(  # noqa: PLR0913
    gradient, second_gradient, pooled, places, weight, bias, statistics, activation, x
) -> Gradients:
    return weight_gradient_output(pooled, x), torch.empty_like(weight), torch.empty_like(weight)


class _ConvPoolNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, x, filters, *arguments):
        """Return y, twice if asked to; the other arguments are those of the operator."""
        weight, bias, _, _, activation, *_ = arguments
        in_memory = filters.contiguous(memory_format=torch.channels_last)
        y, pooled, places, statistics = _forward_op(x, in_memory, *arguments)
        ctx.save_for_backward(pooled, places, weight, bias, statistics, x)
        ctx.activation, ctx.dtype = activation, filters.dtype
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 10
        *saved, x = ctx.saved_tensors
        by_filters, *by_norm = _backward_op(gradient, second_gradient, *saved, ctx.activation, x)
        return (None, None, by_filters.to(ctx.dtype), *by_norm, None, None, None, None, None)
