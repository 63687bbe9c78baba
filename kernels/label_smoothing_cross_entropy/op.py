"""Compute the mean cross-entropy with label smoothing, forward and backward, as an operator.

Shapes: B rows (samples), K classes.

The loss is that of `torch.nn.functional.cross_entropy(..., label_smoothing=s, reduction="mean")`: with p =
softmax(logits) and q = (1 - s) * onehot(target) + s / K, the mean over the rows of -sum_k q_k log p_k
(Szegedy et al. 2016, arXiv:1512.00567, section 7). Its gradient by the logits is (p - q) / B. Two things
differ from PyTorch: half-precision logits are read as they are (arithmetic in float32, no float32 copy), and
no target is ignored.

`torch.compile` keeps the operator in one graph.
"""

import torch

from kernels.arguments import DTYPES
from kernels.label_smoothing_cross_entropy.backward import launch_gradient
from kernels.label_smoothing_cross_entropy.forward import launch_loss
from kernels.label_smoothing_cross_entropy.reference import (
    label_smoothing_cross_entropy_gradient_reference,
    label_smoothing_cross_entropy_reference,
)

_MAX_CLASSES = 32768  # a row must fit in the registers of one program


def label_smoothing_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the mean cross-entropy with label smoothing, a float32 scalar.

    Differentiable once by the logits. On a GPU the kernels run, on a CPU the reference.

    Args:
        logits: (B, K) float16, bfloat16 or float32, finite; K at most 32768.
        targets: (B,) int64, class numbers in [0, K). Other numbers, -100 included, are not skipped: on a GPU
            they make the loss and the gradients of their rows NaN, on a CPU they are an error.
        smoothing: weight of the uniform distribution, in [0, 1].

    Raises:
        ValueError: a shape or dtype is not as stated.
    """
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= _MAX_CLASSES or logits.dtype not in DTYPES:
        raise ValueError(
            f"logits must be float (B, K) with K at most {_MAX_CLASSES}, "
            f"not {logits.dtype} {tuple(logits.shape)}"
        )
    if targets.shape != logits.shape[:1] or targets.dtype is not torch.int64:
        raise ValueError(
            f"targets must be int64 ({len(logits)},), not {targets.dtype} {tuple(targets.shape)}"
        )
    return _loss_op(logits, targets, smoothing)


_loss_op = torch.library.custom_op(
    "quickres::label_smoothing_cross_entropy", launch_loss, mutates_args=(), device_types="cuda"
)
_loss_op.register_kernel("cpu")(label_smoothing_cross_entropy_reference)


@_loss_op.register_fake
def _fake_loss(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    return logits.new_empty((), dtype=torch.float32)


_gradient_op = torch.library.custom_op(
    "quickres::label_smoothing_cross_entropy_gradient", launch_gradient, mutates_args=(), device_types="cuda"
)


@_gradient_op.register_kernel("cpu")
def _gradient_on_cpu(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return label_smoothing_cross_entropy_gradient_reference(gradient, logits, targets, smoothing).contiguous()


@_gradient_op.register_fake
def _fake_gradient(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_for_backward(ctx, inputs, output) -> None:
    logits, targets, ctx.smoothing = inputs
    ctx.save_for_backward(logits, targets)


def _backward(ctx, gradient):
    return _gradient_op(gradient, *ctx.saved_tensors, ctx.smoothing), None, None


_loss_op.register_autograd(_backward, setup_context=_save_for_backward)
