"""Computes the loss and the number of correct predictions, for hard and for mixed targets."""

import torch
import torch.nn.functional as F


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    fractions: torch.Tensor | None = None,
    name: str = "cross_entropy",
) -> torch.Tensor:
    """Return the mean loss with smoothed targets, float32.

    The smoothing is that of Szegedy et al. 2016 (arXiv:1512.00567), section 7. Cross-entropy with hard
    targets uses our own kernels on a GPU, and the kernels' definition in plain PyTorch on the CPU. The binary
    cross-entropy is the mean over images and classes, with the same smoothed targets, as in timm.

    Args:
        logits: (B, K), any floating type.
        labels: (B,) int64; with `fractions` (B, P): each target is a mixture of P labels.
        label_smoothing: fraction of the target that is spread evenly over the K classes.
        fractions: (P,) float, the fraction that each of the P labels has of the target before smoothing; they
            add up to 1. None: hard targets.
        name: as `loss.name`: `cross_entropy` or `bce`.
    """
    if name == "bce":
        if fractions is None:
            labels, fractions = labels[:, None], logits.new_ones(1, dtype=torch.float32)
        targets = soft_targets(labels, fractions, logits.shape[1])
        targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits.float(), targets)
    if fractions is not None:
        targets = soft_targets(labels, fractions, logits.shape[1])
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    # here, because the import of Triton takes a second
    from kernels.label_smoothing_cross_entropy.op import label_smoothing_cross_entropy

    return label_smoothing_cross_entropy(logits, labels, label_smoothing)


def soft_targets(labels: torch.Tensor, fractions: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return (B, num_classes) float32 probabilities from (B, P) labels and their (P,) fractions.

    >>> soft_targets(torch.tensor([[0, 2], [1, 1]]), torch.tensor([0.75, 0.25]), num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.0000, 1.0000, 0.0000]])
    """
    classes = torch.arange(num_classes, device=labels.device)
    return ((labels[:, :, None] == classes) * fractions[:, None]).sum(1)


def count_correct(
    logits: torch.Tensor, labels: torch.Tensor, fractions: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the number of correct predictions, int64.

    A prediction with a mixed target counts as the fraction that its class has of the target; the sum is
    float32. So the training accuracy is that of Mixup's own code (Zhang et al. 2018): it can reach 1 only if
    nothing is mixed.
    """
    predicted = logits.argmax(1)
    if fractions is None:
        return (predicted == labels).sum()
    return ((predicted[:, None] == labels) * fractions).sum()
