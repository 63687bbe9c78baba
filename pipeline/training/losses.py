"""Computes the loss and the number of correct predictions, for hard and for mixed targets."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pipeline.config import LossConfig, check_class_weights
from pipeline.errors import UserError


def compute_class_weights(
    config: LossConfig, num_classes: int | None, class_sizes: Sequence[int] | None, device: torch.device
) -> torch.Tensor | None:
    """Return the factor of each class in the loss, (K,) float32; None without `loss.class_weights`.

    The balanced weight of a class is N / (K n), for n of N training images and K classes that have some: the
    mean over the training images is 1. A class without images gets 0.

    Args:
        config: the section `loss`.
        num_classes: of the data set; None: not known.
        class_sizes: training images of each class; None: not known.
        device: of the result.

    Raises:
        UserError: there is not one weight for each class, or the sizes are needed and not known.
    """
    weights = config.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        if class_sizes is None:
            raise UserError(
                "loss.class_weights: balanced needs the number of training images of each class; give it as "
                "Loaders(…, class_sizes=…), or give a list of weights"
            )
        used = sum(size > 0 for size in class_sizes)
        weights = [sum(class_sizes) / (used * size) if size else 0.0 for size in class_sizes]
    elif num_classes is not None:
        check_class_weights(weights, num_classes)
    return torch.tensor(weights, dtype=torch.float32, device=device)


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float,
    fractions: torch.Tensor | None = None,
    name: str = "cross_entropy",
    class_weights: torch.Tensor | None = None,
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
        class_weights: (K,) float32; the term of each class in the loss is multiplied by its weight. The sum
            is divided by B (binary cross-entropy: by B K), not by the weights of the batch's labels: so the
            loss does not depend on how the batch is divided among processes. None: 1.

    Raises:
        UserError: K is not the number of weights.
    """
    check_class_weights(class_weights, logits.shape[1])
    if fractions is None and (name == "bce" or class_weights is not None):
        labels, fractions = labels[:, None], logits.new_ones(1, dtype=torch.float32)
    if name == "bce":
        assert fractions is not None
        targets = soft_targets(labels, fractions, logits.shape[1])
        targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits.float(), targets, class_weights)
    if fractions is not None:
        targets = soft_targets(labels, fractions, logits.shape[1])
        return F.cross_entropy(logits.float(), targets, weight=class_weights, label_smoothing=label_smoothing)
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
