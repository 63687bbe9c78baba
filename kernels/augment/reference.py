"""Plain PyTorch definition of the op in `augment.py`: the same arguments and the same result, on any device."""

from collections.abc import Sequence

import torch
from torch.nn import functional


def augment_reference(
    images: torch.Tensor,
    order: torch.Tensor,
    draws: torch.Tensor,
    *,
    count: int,
    start: int = 0,
    mean: Sequence[float],
    std: Sequence[float],
    padding: int,
    cutout: int,
    dtype: torch.dtype = torch.float16,
) -> torch.Tensor:
    """Return the augmented images (count, C, H, W) of `dtype`, channels_last; for the arguments see `kernels.augment.op.augment`.

    The crop is a gather from padded images rather than index arithmetic with bounds, so that it can check the kernel.
    """
    _, height, width, _ = images.shape
    device = images.device
    samples = order[start : start + count].long()
    crop_y, crop_x, flip, cutout_y, cutout_x = draws[samples].long().unsqueeze(-1).unbind(1)  # (B, 1) each
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)

    padded = functional.pad(
        images[samples], (0, 0, padding, padding, padding, padding)
    )  # (B, H + 2p, W + 2p, C)
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
    return normalised.to(dtype).permute(0, 3, 1, 2)


def _by_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    # Not `torch.tensor(values)`, which a compiled call would copy from the host each time.
    return torch.stack([torch.full((), value, dtype=torch.float64, device=device) for value in values])
