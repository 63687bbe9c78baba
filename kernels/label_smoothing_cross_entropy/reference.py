"""Define `label_smoothing_cross_entropy` and its gradient in plain PyTorch, for any device.

Arithmetic is in float32, or in float64 for float64 logits. B rows, K classes.
"""

import torch
from torch.nn import functional


def label_smoothing_cross_entropy_reference(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the mean over the rows of -sum_k q_k log softmax(logits)_k, a scalar.

    Logits are (B, K), targets (B,) int64 in [0, K).
    """
    logits = _at_least_float32(logits)
    return -(_smoothed(targets, logits, smoothing) * logits.log_softmax(1)).sum(1).mean()


def label_smoothing_cross_entropy_gradient_reference(
    gradient: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """Return the gradient by the logits, (B, K) in their dtype. `gradient` is the gradient by the loss."""
    wide = _at_least_float32(logits)
    return (gradient / len(wide) * (wide.softmax(1) - _smoothed(targets, wide, smoothing))).to(logits.dtype)


def _smoothed(targets: torch.Tensor, logits: torch.Tensor, smoothing: float) -> torch.Tensor:
    num_classes = logits.shape[1]
    one_hot = functional.one_hot(targets, num_classes).to(logits.dtype)
    return (1 - smoothing) * one_hot + smoothing / num_classes


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
