"""Losses."""

import torch


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean cross-entropy against smoothed targets (Szegedy et al. 2016, arXiv:1512.00567, section 7), in float32.

    On a GPU by our own kernels; on the CPU by their definition in plain PyTorch.

    Args:
        logits: (B, K), any floating type.
        labels: (B,) int64.
        label_smoothing: share of the target spread evenly over the K classes.
    """
    from kernels.label_smoothing_cross_entropy import label_smoothing_cross_entropy  # importing Triton takes a second

    return label_smoothing_cross_entropy(logits, labels, label_smoothing)
