"""Define `augment` in plain PyTorch, for any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional


class Augmentation(NamedTuple):
    """The settings that all samples share.

    Attributes:
        mean: of each channel, as a fraction of 1.
        std: of each channel, as a fraction of 1.
        padding: pixels added to each side before the crop.
        cutout: side of the Cutout box in pixels; 0: no box.
        dtype: of the result: float16, bfloat16 or float32.
        reflect: the border of `padding` pixels is the image mirrored at its edges, and not black. Needs an
            image larger than `padding`.
        brightness, contrast: the largest change of either; if both are 0 the draws have no columns for them.
    """

    mean: Sequence[float]
    std: Sequence[float]
    padding: int
    cutout: int
    dtype: torch.dtype = torch.float16
    reflect: bool = False
    brightness: float = 0.0
    contrast: float = 0.0

    @property
    def jitters(self) -> bool:
        """Return True if brightness or contrast change."""
        return self.brightness > 0 or self.contrast > 0


def augment_reference(
    images: torch.Tensor,
    order: torch.Tensor,
    draws: torch.Tensor,
    augmentation: Augmentation,
    *,
    count: int,
    start: int = 0,
) -> torch.Tensor:
    """Return the augmented images (count, C, H, W), channels_last. The arguments are those of `augment`.

    The crop is a gather from padded images in place of index arithmetic with bounds, so that it can check the
    kernel.
    """
    mean, std, padding, cutout, dtype, reflect, _, _ = augmentation
    _, height, width, _ = images.shape
    device = images.device
    samples = order[start : start + count].long()
    columns = draws[samples][:, :5].long()
    crop_y, crop_x, flip, cutout_y, cutout_x = columns.unsqueeze(-1).unbind(1)  # (B, 1) each
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)

    # (B, H + 2p, W + 2p, C)
    padded = _pad(images[samples], padding, reflect)
    rows = crop_y + y  # (B, H)
    columns = crop_x + torch.where(flip != 0, x.flip(0), x)  # (B, W)
    batch = torch.arange(count, device=device)
    pixels = padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)

    mean255 = 255 * _by_channel(mean, device)
    std255 = 255 * _by_channel(std, device)
    in_box_y = (y >= cutout_y) & (y < cutout_y + cutout)  # (B, H)
    in_box_x = (x >= cutout_x) & (x < cutout_x + cutout)  # (B, W)
    in_box = in_box_y[:, :, None] & in_box_x[:, None, :]
    pixels = torch.where(in_box[..., None], mean255.round().to(torch.uint8), pixels)

    normalised = (pixels.float() - mean255.float()) * (1 / std255.float())
    if augmentation.jitters:
        jittered = _jitter(normalised, draws[samples][:, 5:], augmentation)
        normalised = torch.where(in_box[..., None], normalised, jittered)
    return normalised.to(dtype).permute(0, 3, 1, 2)


def _pad(images: torch.Tensor, padding: int, reflect: bool) -> torch.Tensor:
    """Add a border to (B, H, W, C) uint8 images; torch's reflection takes no uint8."""
    if not reflect:
        return functional.pad(images, (0, 0, padding, padding, padding, padding))
    channels_first = images.permute(0, 3, 1, 2).float()
    padded = functional.pad(channels_first, (padding,) * 4, mode="reflect")
    return padded.permute(0, 2, 3, 1).to(torch.uint8)


def _jitter(images: torch.Tensor, draws: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """Change brightness and contrast of normalised (B, H, W, C) float32 images; the draws are (B, 2)."""
    shift, change = draws.float()[..., None, None, None].unbind(1)  # (B, 1, 1, 1) each
    return (images + shift * (augmentation.brightness / 2**31)) * (
        1 + change * (augmentation.contrast / 2**31)
    )


def _by_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    # Not `torch.tensor(values)`, which a compiled call would copy from the host each time.
    return torch.stack([torch.full((), value, dtype=torch.float64, device=device) for value in values])
