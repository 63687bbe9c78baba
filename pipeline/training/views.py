"""Computes logits from several test-time views of an image, for all images or for the least sure ones.

The views and their weights are those of airbench (Jordan 2024, arXiv:2404.00498, "multi-crop evaluation"):
the image and its mirror image weigh a half together, and this pair, shifted by one pixel, a quarter for each
of two directions. In a program of Hive (github.com/hiverge/cifar10-speedrun) only the least sure images get
more than one view; it weighs all six views alike. Here the weights do not depend on the share of the images.
"""

from collections.abc import Callable

import torch

from pipeline.config.evaluation import ViewsKind

Forward = Callable[[torch.Tensor], torch.Tensor]


def mean_logits(
    forward: Forward, images: torch.Tensor, kind: ViewsKind, logits: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weighted mean of the logits over the views of each image.

    `mirror` is the mean of the image and its mirror image (two of the ten views of Krizhevsky et al. 2012,
    section 4.1). `mirror_shift` adds the images shifted by one pixel to the upper left and to the lower
    right, each with its mirror image. What a shift uncovers is reflected (not repeated) at the edge, as by
    torch's `pad(mode="reflect")`. `none` is the image alone.

    FORWARD is called once for each view, always with as many images as there are here: a network that is
    compiled or captured for that shape needs no other.

    Args:
        forward: images to logits (B, K).
        images: (B, C, H, W) as the loader delivers them, normalised, at least 2 pixels high and wide.
        kind: the views.
        logits: those of the images themselves, if they are known.

    Returns:
        (B, K) float32.
    """
    own = _logits(forward, images) if logits is None else logits
    if kind == "none":
        return own
    pair = _with_mirror(forward, images, own)
    if kind == "mirror":
        return pair
    shifted = (_shift(images, by) for by in (-1, 1))
    pairs = [_with_mirror(forward, some, _logits(forward, some)) for some in shifted]
    return pair / 2 + (pairs[0] + pairs[1]) / 4


def _logits(forward: Forward, images: torch.Tensor) -> torch.Tensor:
    """Return a copy: a captured network writes the next logits into the same memory."""
    return forward(images).to(torch.float32, copy=True)


def _with_mirror(forward: Forward, images: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return (own + forward(images.flip(3)).float()) / 2


def _shift(images: torch.Tensor, by: int) -> torch.Tensor:
    """Shift by one pixel down and to the right (BY is 1), or up and to the left (-1)."""
    for axis in (2, 3):
        size = images.shape[axis]
        uncovered = images.narrow(axis, 1 if by > 0 else size - 2, 1)
        kept = images.narrow(axis, 0 if by > 0 else 1, size - 1)
        # the result of `cat` keeps the memory format of its parts
        images = torch.cat([uncovered, kept] if by > 0 else [kept, uncovered], axis)
    return images


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return the largest softmax probability of each row, 0 for one with NaN: (B, K) to (B,) float32."""
    return logits.float().softmax(1).amax(1).nan_to_num(0.0)


def least_sure(confidences: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of the COUNT lowest values, lowest first; of equal ones, the first come first.

    Args:
        confidences: (N,) float32; infinity marks a place without an image.
        count: at most N.
    """
    return confidences.argsort(stable=True)[:count]
