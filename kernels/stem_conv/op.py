"""The first convolution of a small-image ResNet, 3x3 with a border of zeros, and its gradient by the weight.

cuDNN's convolutions are made for many input channels. With the 1 to 3 of an image they take four times as long as it takes to write
their result; here a tile of the images is gathered into the operand of a matrix product, and the bytes of the result are the limit.

The weight stays in float32: the kernels cast it as they read it, in place of a launch of autocast. Its gradient is summed and returned in
float32. There is no gradient by the images.
"""

import torch

from kernels.stem_conv.forward import forward_output, launch_forward, launch_weight_gradient
from kernels.stem_conv.reference import stem_conv_reference, stem_conv_weight_gradient_reference

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MAX_IN_CHANNELS = 3  # 9 taps of each, and one more, fit in the 32 bits of a word


@torch.library.custom_op("quickres::stem_conv", mutates_args=(), device_types="cuda")
def _forward_op(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return launch_forward(images, weight, dtype)


_forward_op.register_kernel("cpu")(stem_conv_reference)


@_forward_op.register_fake
def _fake_forward(images: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return forward_output(images, weight, dtype)


@torch.library.custom_op("quickres::stem_conv_weight_gradient", mutates_args=(), device_types="cuda")
def _weight_gradient_op(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return launch_weight_gradient(dy, images, weight)


_weight_gradient_op.register_kernel("cpu")(stem_conv_weight_gradient_reference)


@_weight_gradient_op.register_fake
def _fake_weight_gradient(dy: torch.Tensor, images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight)


def _save_for_backward(ctx, inputs, output) -> None:
    images, weight, _ = inputs
    ctx.save_for_backward(images, weight)


def _backward(ctx, dy):
    return (
        None,
        _weight_gradient_op(dy.contiguous(memory_format=torch.channels_last), *ctx.saved_tensors),
        None,
    )


_forward_op.register_autograd(_backward, setup_context=_save_for_backward)


def stem_conv(images: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return conv2d(images, weight, padding=1), differentiable once by the weight.

    Under autocast both are cast to its dtype, otherwise to that of the images. On a GPU the kernels run, on a CPU the reference. The
    first call for a shape compiles kernels: make it before a CUDA graph is captured.

    Args:
        images: (B, C, H, W) float16, bfloat16 or float32, C at most 3; channels_last, otherwise they are copied.
        weight: (O, C, 3, 3) float16, bfloat16 or float32; channels_last, otherwise it is copied.

    Returns:
        (B, O, H, W), channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, or the images require a gradient.
    """
    return _forward_op(*checked(images, weight))


def checked(images: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    """Return images and weight in channels_last, and the dtype of y, once everything is of the right shape and dtype."""
    if (
        images.ndim != 4
        or not 1 <= images.shape[1] <= _MAX_IN_CHANNELS
        or images.dtype not in _DTYPES
        or not images.numel()
    ):
        raise ValueError(
            f"images must be float (B, C, H, W) with C at most {_MAX_IN_CHANNELS}, not {images.dtype} {tuple(images.shape)}"
        )
    if images.requires_grad:
        raise ValueError("images must not require a gradient: this op has none; use conv2d")
    if weight.shape[1:] != (images.shape[1], 3, 3) or not len(weight) or weight.dtype not in _DTYPES:
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
