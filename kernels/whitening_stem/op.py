"""Compute the first layers of the networks of airbench: a 2x2 convolution of images, its bias and GELU.

    y = gelu(conv2d(images, weight, bias))

The filters are computed from the training images and stay as they are (Page 2018, "How to train your
ResNet", part 8), so there is no gradient but that by the bias.

Bytes moved, in passes over y: 1 forward and 1 backward, and about a seventh of a pass each for the images.
cuDNN's convolution is made for many input channels; it writes its result, and the GELU reads and writes it
again. Backward, the value under the GELU is computed again from the images, and its gradient is not written.

Weight and bias stay in float32: the kernels cast the weight as they read it, which saves a launch of
autocast. The bias is not rounded. The gradient is summed in float32.
"""

import torch

from kernels.arguments import DTYPES
from kernels.whitening_stem.backward import launch_bias_gradient
from kernels.whitening_stem.forward import forward_output, launch_forward
from kernels.whitening_stem.reference import bias_gradient_reference, whitening_stem_reference

_MAX_IN_CHANNELS = 16


def whitening_stem(
    images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, channels: int | None = None
) -> torch.Tensor:
    """Return gelu(conv2d(images, weight, bias)), differentiable once by the bias.

    Images and weight are cast to the dtype of autocast, or without autocast to that of the images. On a GPU
    the kernels run, on a CPU the reference. The first call for a shape compiles kernels: make it before a
    CUDA graph is captured.

    Args:
        images: (B, C, H, W) float16, bfloat16 or float32, C at most 16, H and W at least 2; channels_last,
            otherwise they are copied.
        weight: (O, C, 2, 2) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        bias: (O,) contiguous float16, bfloat16 or float32.
        channels: of the result, O or more; those beyond O are 0. Default: O.

    Returns:
        (B, channels, H - 1, W - 1), channels_last.

    Raises:
        ValueError: a shape, a number or a dtype is not as stated, or images or weight require a gradient.
    """
    _check(images, weight, bias)
    channels = len(weight) if channels is None else channels
    if channels < len(weight):
        raise ValueError(f"channels must be at least {len(weight)}, as many as weight has, not {channels}")
    autocast = torch.is_autocast_enabled(images.device.type)
    dtype = torch.get_autocast_dtype(images.device.type) if autocast else images.dtype
    return _forward_op(
        images.contiguous(memory_format=torch.channels_last),
        weight.contiguous(memory_format=torch.channels_last),
        bias,
        dtype,
        channels,
    )


def _check(images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    good_shape = images.ndim == 4 and 1 <= images.shape[1] <= _MAX_IN_CHANNELS and len(images) > 0
    if not good_shape or min(images.shape[2:]) < 2 or images.dtype not in DTYPES:
        raise ValueError(
            f"images must be float (B, C, H, W) with C at most {_MAX_IN_CHANNELS} and 2x2 pixels or more, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    if weight.shape[1:] != (images.shape[1], 2, 2) or not len(weight) or weight.dtype not in DTYPES:
        raise ValueError(
            f"weight must be float (O, {images.shape[1]}, 2, 2), not {weight.dtype} {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape[:1] or bias.dtype not in DTYPES or not bias.is_contiguous():
        raise ValueError(
            f"bias must be contiguous float ({len(weight)},), not {bias.dtype} {tuple(bias.shape)}"
        )
    for name, tensor in (("images", images), ("weight", weight)):
        if tensor.requires_grad:
            raise ValueError(f"{name} must not require a gradient, which this op cannot compute; use conv2d")


_forward_op = torch.library.custom_op(
    "quickres::whitening_stem", launch_forward, mutates_args=(), device_types="cuda"
)
_forward_op.register_kernel("cpu")(whitening_stem_reference)
_forward_op.register_fake(forward_output)

_bias_gradient_op = torch.library.custom_op(
    "quickres::whitening_stem_bias_gradient", launch_bias_gradient, mutates_args=(), device_types="cuda"
)
_bias_gradient_op.register_kernel("cpu")(bias_gradient_reference)


@_bias_gradient_op.register_fake
def _fake_bias_gradient(
    dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(bias)


def _save_for_backward(ctx, inputs, output) -> None:
    images, weight, bias, *_ = inputs
    ctx.save_for_backward(images, weight, bias)


def _backward(ctx, dy):
    dy = dy.contiguous(memory_format=torch.channels_last)
    return None, None, _bias_gradient_op(dy, *ctx.saved_tensors), None, None


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
