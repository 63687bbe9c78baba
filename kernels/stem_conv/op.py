"""Compute the first convolution of a small-image ResNet and its gradient by the weight.

The convolution is 3x3 with a border of zeros.

cuDNN's convolutions are made for many input channels. With the 1 to 3 channels of an image they take four
times as long as writing their result takes. Here a tile of the images is gathered into the operand of a
matrix product, and only the bytes of the result limit the speed.

The weight stays in float32: the kernels cast it as they read it, which saves a launch of autocast. Its
gradient is summed in float32 and has the dtype of the weight. There is no gradient by the images.
"""

import torch

from kernels.arguments import DTYPES
from kernels.stem_conv.backward import launch_weight_gradient
from kernels.stem_conv.forward import forward_output, launch_forward
from kernels.stem_conv.reference import stem_conv_reference, stem_conv_weight_gradient_reference

_MAX_IN_CHANNELS = 3  # 9 taps of each, and one more, fit in the 32 bits of a word


def stem_conv(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return conv2d(images, weight, padding=1), differentiable once by the weight.

    Images and weight are cast to the dtype of autocast, or without autocast to that of the images. On a GPU
    the kernels run, on a CPU the reference. The first call for a shape compiles kernels: make it before a
    CUDA graph is captured.

    Args:
        images: (B, C, H, W) float16, bfloat16 or float32, C at most 3; channels_last, otherwise they are
            copied.
        weight: (O, C, 3, 3) float16, bfloat16 or float32; channels_last, otherwise it is copied.

    Returns:
        (B, O, H, W), channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or the images require a gradient.
    """
    return _forward_op(*checked(images, weight))


def checked(images: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Return images and weight in channels_last, and the dtype of y, or raise a ValueError."""
    good_shape = images.ndim == 4 and 1 <= images.shape[1] <= _MAX_IN_CHANNELS and images.numel() > 0
    if not good_shape or images.dtype not in DTYPES:
        raise ValueError(
            f"images must be float (B, C, H, W) with C at most {_MAX_IN_CHANNELS}, "
            f"not {images.dtype} {tuple(images.shape)}"
        )
    if images.requires_grad:
        raise ValueError("images must not require a gradient, which this op cannot compute; use conv2d")
    if weight.shape[1:] != (images.shape[1], 3, 3) or not len(weight) or weight.dtype not in DTYPES:
        raise ValueError(
            f"weight must be float (O, {images.shape[1]}, 3, 3), not {weight.dtype} {tuple(weight.shape)}"
        )
    autocast = torch.is_autocast_enabled(images.device.type)
    dtype = torch.get_autocast_dtype(images.device.type) if autocast else images.dtype
    return (
        images.contiguous(memory_format=torch.channels_last),
        weight.contiguous(memory_format=torch.channels_last),
        dtype,
    )


_forward_op = torch.library.custom_op(
    "quickres::stem_conv", launch_forward, mutates_args=(), device_types="cuda"
)
_forward_op.register_kernel("cpu")(stem_conv_reference)
_forward_op.register_fake(forward_output)

_weight_gradient_op = torch.library.custom_op(
    "quickres::stem_conv_weight_gradient", launch_weight_gradient, mutates_args=(), device_types="cuda"
)
_weight_gradient_op.register_kernel("cpu")(stem_conv_weight_gradient_reference)


@_weight_gradient_op.register_fake
def _fake_weight_gradient(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


def _save_for_backward(ctx, inputs, output) -> None:
    images, weight, _ = inputs
    ctx.save_for_backward(images, weight)


def _backward(ctx, dy):
    dy = dy.contiguous(memory_format=torch.channels_last)
    return None, _weight_gradient_op(dy, *ctx.saved_tensors), None


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)
