"""The loss, and what counts as a correct prediction, for hard and for mixed targets."""

import torch
import torch.nn.functional as F


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float, shares: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean cross-entropy against smoothed targets (Szegedy et al. 2016, arXiv:1512.00567, section 7), in float32.

    With hard targets, on a GPU by our own kernels; on the CPU by their definition in plain PyTorch.

    Args:
        logits: (B, K), any floating type.
        labels: (B,) int64; with `shares` (B, P): each target is a mixture of P labels.
        label_smoothing: share of the target spread evenly over the K classes.
        shares: (P,) float, what each of the P labels has of the target before smoothing; they add up to 1. None: hard targets.
    """
    if shares is not None:
        return F.cross_entropy(
            logits.float(), soft_targets(labels, shares, logits.shape[1]), label_smoothing=label_smoothing
        )
    from kernels.label_smoothing_cross_entropy.op import (
        label_smoothing_cross_entropy,
    )  # importing Triton takes a second

    return label_smoothing_cross_entropy(logits, labels, label_smoothing)


def soft_targets(labels: torch.Tensor, shares: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, num_classes) float32 probabilities from (B, P) labels and their (P,) shares.

    >>> soft_targets(torch.tensor([[0, 2], [1, 1]]), torch.tensor([0.75, 0.25]), num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.0000, 1.0000, 0.0000]])
    """
    classes = torch.arange(num_classes, device=labels.device)
    return ((labels[:, :, None] == classes) * shares[:, None]).sum(1)


def count_correct(
    logits: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None
) -> torch.Tensor:
    """Correct predictions, int64; with mixed targets the sum of what the predicted classes have of their targets, float32.

    So the training accuracy of mixed images is that of Mixup's own code (Zhang et al. 2018): it reaches 1 only where nothing is mixed.
    """
    predicted = logits.argmax(1)
    return (predicted == labels).sum() if shares is None else ((predicted[:, None] == labels) * shares).sum()
