"""Compute the stem of a small-image ResNet: 3x3 convolution, training-mode batch norm and ReLU.

    y = relu((x - mean) / sqrt(var + eps) * norm.weight + norm.bias),  x = conv2d(images, weight, padding=1)

The images are small beside x, and x is cheap to compute. So x is computed again wherever it is needed, and
never written. The statistics come from the second moments of the images (`forward.py`), and so do two of the
three terms of backward (`backward.py`). Passes over an activation: 1 forward, writing y, and 2 backward,
reading the gradients of two uses of y (1 if there is one use). Separate ops need 4 and 8 passes, and a
convolution of few input channels is slow besides.

The convolution's weight stays in float32 until the kernels read it. There is no gradient by the images.
"""

import torch

from kernels.arguments import Norm, check_norm, prepare_gradients
from kernels.stem_conv import op as stem_conv
from kernels.stem_conv_norm_act.backward import launch_backward
from kernels.stem_conv_norm_act.forward import forward_outputs, launch_forward
from kernels.stem_conv_norm_act.reference import backward_reference, forward_reference


def stem_conv_norm_act(
    images: torch.Tensor, weight: torch.Tensor, norm: Norm, momentum: float = 0.1, eps: float = 1e-5
) -> torch.Tensor:
    """Return relu(batch_norm(conv2d(images, weight, padding=1))), and update the running statistics.

    Differentiable once by the convolution's weight and by batch norm's weight and bias. Images and weight are
    cast to the dtype of autocast, or without autocast to that of the images; x is not rounded. On a GPU the
    kernels run, on a CPU the reference. The first call for a shape compiles kernels: make it before a CUDA
    graph is captured.

    Args:
        images: (B, C, H, W) float16, bfloat16 or float32, C at most 3; channels_last, otherwise they are
            copied.
        weight: (O, C, 3, 3) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm: (O,) contiguous float32 each. The running statistics move towards those of the batch.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (B, O, H, W), channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, the images require a gradient, or there is only one
            pixel, which has no unbiased variance.
    """
    images, weight, dtype = _checked(images, weight, norm)
    return _StemConvNormAct.apply(False, images, weight, *norm, dtype, momentum, eps)


def stem_conv_norm_act_twice(
    images: torch.Tensor, weight: torch.Tensor, norm: Norm, momentum: float = 0.1, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `stem_conv_norm_act` twice, in the same memory; see `batch_norm_act_twice`."""
    images, weight, dtype = _checked(images, weight, norm)
    return _StemConvNormAct.apply(True, images, weight, *norm, dtype, momentum, eps)


def _checked(
    images: torch.Tensor, weight: torch.Tensor, norm: Norm
) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Return images and weight in channels_last, and the dtype of y, or raise a ValueError."""
    images, weight, dtype = stem_conv.checked(images, weight)
    if images.numel() == images.shape[1]:
        raise ValueError(f"images must have more than one pixel, not the shape {tuple(images.shape)}")
    check_norm(norm, len(weight))
    return images, weight, dtype


@torch.library.custom_op(
    "quickres::stem_conv_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(  # noqa: PLR0913
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    dtype: torch.dtype,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    norm = Norm(norm_weight, norm_bias, running_mean, running_var)
    return launch_forward(images, weight, norm, dtype, momentum, eps)


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(  # noqa: PLR0913
    images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps
):
    return forward_outputs(images, weight, dtype)


_backward_op = torch.library.custom_op(
    "quickres::stem_conv_norm_act_backward", launch_backward, mutates_args=(), device_types="cuda"
)
_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, images, weight, norm_weight, norm_bias, *rest):
    return torch.empty_like(weight), torch.empty_like(norm_weight), torch.empty_like(norm_bias)


class _StemConvNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, twice, *arguments):
        """Return y, twice if asked to; the arguments are those of the operator."""
        images, weight, norm_weight, norm_bias, *_ = arguments
        y, statistics, moments = _forward_op(*arguments)
        ctx.save_for_backward(images, weight, norm_weight, norm_bias, statistics, moments)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient, second_gradient = prepare_gradients(gradient, second_gradient)
        if gradient is None:
            return (None,) * 10
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors)
        return (None, None, *gradients, *(None,) * 5)
