"""Computes logits from several test-time views of an image, for all images or for the least sure ones.

The views and their weights are those of airbench (Jordan 2024, arXiv:2404.00498, "multi-crop evaluation"):
the image and its mirror image weigh a half together, and this pair, shifted by one pixel, a quarter for each
of two directions. In a program of Hive (github.com/hiverge/cifar10-speedrun) only the least sure images get
more than one view; it weighs all six views alike. Here the weights do not depend on the share of the images.
"""

from collections.abc import Callable, Iterator

import torch

from pipeline.config import Views
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


@torch.no_grad()
def predict_views(
    forward: Forward, images: torch.Tensor, batch_size: int, views: Views
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the logits of images that are on the device, from one view and from several.

    The host reads nothing back and every call of FORWARD has the same shape, so that all of it can be
    captured in a CUDA graph; only the number of images and the arguments decide what is launched. The last
    batch is filled up with images that are computed twice.

    Args:
        forward: images to logits (B, K), in evaluation mode; with its autocast, if it needs one.
        images: (N, C, H, W) on the device, normalised, or as FORWARD takes them.
        batch_size: images in a call; N, if that is less.
        views: test-time views, and the share of the images that get them.

    Returns:
        (N, K) float32 logits from one view, and the same with the mean over the views for those images that
        get them.
    """
    num_images, size = len(images), min(batch_size, len(images))
    one: torch.Tensor | None = None
    for start in _starts(num_images, size):
        logits = forward(images[start : start + size])
        one = logits.new_empty(num_images, logits.shape[1], dtype=torch.float32) if one is None else one
        one[start : start + size] = logits
    assert one is not None, "there are no images"
    several, count = one.clone(), views.count(num_images)
    order = least_sure(confidence(one), num_images) if count < num_images else None
    for start in _starts(count, size):
        rows = slice(start, start + size) if order is None else order[start : start + size]
        mean = mean_logits(forward, images[rows], views.kind, one[rows])
        if order is None:
            several[rows] = mean
        else:
            several.index_copy_(0, order[start : min(start + size, count)], mean[: count - start])
    return one, several


@torch.no_grad()
def count_correct_of_views(
    forward: Forward, images: torch.Tensor, labels: torch.Tensor, batch_size: int, views: Views
) -> torch.Tensor:
    """Count the images on the device that are classified correctly from one view, and from several.

    Args:
        forward, images, batch_size, views: as for `predict_views`; it can be captured likewise.
        labels: (N,) int64, on the device.

    Returns:
        (2,) int64 on the device.
    """
    logits = predict_views(forward, images, batch_size, views)
    return torch.stack([(some.argmax(1) == labels).sum() for some in logits])


def _starts(count: int, size: int) -> Iterator[int]:
    """Yield the first positions of the batches of SIZE that cover COUNT positions.

    The last batch ends at the last position, and overlaps the one before it; it goes beyond if there is no
    other.
    """
    for start in range(0, count, size):
        yield max(min(start, count - size), 0)
