"""The stem of a small-image ResNet: a 3x3 convolution of the images, training-mode batch norm and ReLU.

    y = relu((x - mean) / sqrt(var + eps) * norm_weight + norm_bias),  x = conv2d(images, weight, padding=1)

The images are small beside x, and x is cheap to compute: it is computed again wherever it is needed, and never written. The statistics
come from the second moments of the images (`stem_conv_norm_act_forward.py`) and so do two of the three terms of backward
(`stem_conv_norm_act_backward.py`). Passes over an activation: 1 forward, writing y, and 2 backward, reading the gradients of two uses of
y (1 where there is one use). One op after the other they are 4 and 8, and a convolution of few input channels is slow besides.

The convolution's weight stays in float32 until the kernels read it. There is no gradient by the images.
"""

import torch

from kernels.stem_conv.op import checked
from kernels.stem_conv_norm_act.backward import launch_backward
from kernels.stem_conv_norm_act.forward import forward_outputs, launch_forward
from kernels.stem_conv_norm_act.reference import backward_reference, forward_reference


@torch.library.custom_op(
    "quickres::stem_conv_norm_act", mutates_args=("running_mean", "running_var"), device_types="cuda"
)
def _forward_op(
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
    return launch_forward(
        images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps
    )


_forward_op.register_kernel("cpu")(forward_reference)


@_forward_op.register_fake
def _fake_forward(images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps):
    return forward_outputs(images, weight, dtype)


@torch.library.custom_op("quickres::stem_conv_norm_act_backward", mutates_args=(), device_types="cuda")
def _backward_op(
    gradient: torch.Tensor,
    second_gradient: torch.Tensor | None,
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    statistics: torch.Tensor,
    moments: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return launch_backward(
        gradient, second_gradient, images, weight, norm_weight, norm_bias, statistics, moments
    )


_backward_op.register_kernel("cpu")(backward_reference)


@_backward_op.register_fake
def _fake_backward(gradient, second_gradient, images, weight, norm_weight, norm_bias, statistics, moments):
    return torch.empty_like(weight), torch.empty_like(norm_weight), torch.empty_like(norm_bias)


class _StemConvNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps, twice
    ):
        y, statistics, moments = _forward_op(
            images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps
        )
        ctx.save_for_backward(images, weight, norm_weight, norm_bias, statistics, moments)
        ctx.set_materialize_grads(False)
        return (y, y.view_as(y)) if twice else y

    @staticmethod
    def backward(ctx, gradient, second_gradient=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        if gradient is None:
            gradient, second_gradient = second_gradient, None
        if gradient is None:
            return (None,) * 10
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if second_gradient is not None:
            second_gradient = second_gradient.contiguous(memory_format=torch.channels_last)
        gradients = _backward_op(gradient, second_gradient, *ctx.saved_tensors)
        return (None, *gradients, *(None,) * 6)


def stem_conv_norm_act(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Return relu(batch_norm(conv2d(images, weight, padding=1))), and move the running statistics towards those of the batch.

    Differentiable once by the convolution's weight and by batch norm's weight and bias. Under autocast images and weight are cast to its
    dtype, otherwise to that of the images; x is not rounded. On a GPU the kernels run, on a CPU the reference. The first call for a shape
    compiles kernels: make it before a CUDA graph is captured.

    Args:
        images: (B, C, H, W) float16, bfloat16 or float32, C at most 3; channels_last, otherwise they are copied.
        weight: (O, C, 3, 3) float16, bfloat16 or float32; channels_last, otherwise it is copied.
        norm_weight: (O,) float32, as are the other three.
        norm_bias: batch norm's bias.
        running_mean: becomes (1 - momentum) * running_mean + momentum * mean.
        running_var: likewise, with the unbiased variance.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.

    Returns:
        (B, O, H, W), channels_last.

    Raises:
        ValueError: a shape or dtype is not as stated, the images require a gradient, or there is one pixel, which has no unbiased variance.
    """
    images, weight, dtype = _checked(images, weight, norm_weight, norm_bias, running_mean, running_var)
    return _StemConvNormAct.apply(
        images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps, False
    )


def stem_conv_norm_act_twice(
    images: torch.Tensor,
    weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y of `stem_conv_norm_act` twice, in the same memory, for two users; see `batch_norm_act_twice`."""
    images, weight, dtype = _checked(images, weight, norm_weight, norm_bias, running_mean, running_var)
    return _StemConvNormAct.apply(
        images, weight, norm_weight, norm_bias, running_mean, running_var, dtype, momentum, eps, True
    )


def _checked(
    images, weight, norm_weight, norm_bias, running_mean, running_var
) -> tuple[torch.Tensor, torch.Tensor, torch.dtype]:
    images, weight, dtype = checked(images, weight)
    if images.numel() == images.shape[1]:
        raise ValueError(f"images must have more than one pixel, which {tuple(images.shape)} have not")
    vectors = {
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    for name, vector in vectors.items():
        if (
            vector.shape != weight.shape[:1]
            or vector.dtype is not torch.float32
            or not vector.is_contiguous()
        ):
            raise ValueError(
                f"{name} must be contiguous float32 ({len(weight)},), not {vector.dtype} {tuple(vector.shape)}"
            )
    return images, weight, dtype
