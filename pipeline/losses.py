"""Losses."""

import torch
import torch.nn.functional as F


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    """Mean cross-entropy against smoothed targets (Szegedy et al. 2016, arXiv:1512.00567, section 7), in float32.

    Args:
        logits: (B, K), any floating type.
        labels: (B,) int64.
        label_smoothing: share of the target spread evenly over the K classes.
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
