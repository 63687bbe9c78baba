"""Compute a 3x3 convolution, 2x2 max-pool, batch norm and activation, of an input that needs no gradient.

    y = activation(batch_norm(max_pool2d(conv2d(x, weight, padding=1), 2)))

Forward is PyTorch's convolution and the two launches of `pool_norm_act`. Backward, that op writes the
gradient by the output of the convolution, of which three quarters are zeros, and the convolution reads it.
Without a gradient by x only the gradient by the weight needs it. Here that is computed from the gradient by
the maximum of each window, which has a quarter of the bytes, and the places of the maxima.

Bytes moved backward, in passes over a pooled activation: 6, and x. They are dy and the pooled activation
twice, and the gradient by the maxima, written and read. With `pool_norm_act` and cuDNN they are 12, and x:
the gradient that is written and read is four passes or a few more.

The weight stays in float32, and its gradient is summed in float32 and not rounded. See
`kernels/pool_norm_act/op.py` for the rest, `torch.compile` and CUDA graphs.
"""

import torch
from torch.nn import functional

from kernels.arguments import Activation, Norm, prepare_gradients
from kernels.conv_pool_norm_act.backward import (
    BLOCK_IN,
    MAX_CHANNELS,
    launch_backward,
    weight_gradient_output,
)
from kernels.conv_pool_norm_act.reference import backward_reference
from kernels.norm_gradient import Gradients
from kernels.pool_norm_act import op as pool_norm_act_op

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


@torch.compiler.assume_constant_result
def _on_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER


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
    x, convolved = _convolve(x, weight, norm, activation)
    return _ConvPoolNormAct.apply(False, x, weight, convolved, *norm, activation, momentum, eps)


def conv_pool_norm_act_twice(
    x: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    activation: Activation = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `conv_pool_norm_act` twice, in the same memory; see `batch_norm_act_twice`."""
    x, convolved = _convolve(x, weight, norm, activation)
    return _ConvPoolNormAct.apply(True, x, weight, convolved, *norm, activation, momentum, eps)


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, norm: Norm, activation: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and its convolution in channels_last, or raise a ValueError."""
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
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    convolved = functional.conv2d(x, weight.detach().to(dtype), padding=1)
    return x, pool_norm_act_op.checked_for_pool(convolved, norm, activation)


def _dtype(x: torch.Tensor) -> torch.dtype:
    autocast = torch.is_autocast_enabled(x.device.type)
    return torch.get_autocast_dtype(x.device.type) if autocast else x.dtype


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
    def forward(ctx, twice, x, filters, convolved, *arguments):
        """Return y, twice if asked to; the last arguments are those of the operator of `pool_norm_act`."""
        weight, bias, _, _, activation, *_ = arguments
        y, pooled, places, statistics = pool_norm_act_op.forward_op(convolved, *arguments)
        ctx.save_for_backward(pooled, places, weight, bias, statistics, x)
        ctx.activation, ctx.dtype = activation, filters.dtype
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 11
        *saved, x = ctx.saved_tensors
        by_filters, *by_norm = _backward_op(gradient, second_gradient, *saved, ctx.activation, x)
        return (None, None, by_filters.to(ctx.dtype), None, *by_norm, None, None, None, None, None)
