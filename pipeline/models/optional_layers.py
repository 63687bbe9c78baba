"""Defines layers that a recipe may add to the blocks: blurred strides and stochastic depth."""

import torch
import torch.nn.functional as F
from torch import nn


class BlurConv2d(nn.Conv2d):
    """A convolution whose input is blurred first, so that its stride skips no detail (Zhang 2019).

    The filter is [1, 2, 1] / 4 in both directions, with a border of zeros, as in ffcv-imagenet
    (arXiv:1904.11486; `BlurPoolConv2d`). The weights and their names are those of the plain convolution.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(blur(input))


def blur(images: torch.Tensor) -> torch.Tensor:
    """Return (B, C, H, W) activations filtered with [1, 2, 1] / 4 in both directions, of the same shape.

    The filter is the mean of two neighbours, twice: pooling is faster than a convolution of each channel.
    """
    padded = F.pad(images, (1, 1, 1, 1))
    return F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2, stride=1)


class StochasticDepth(nn.Module):
    """Drops the function of a block for some images of a batch in training (Huang et al. 2016).

    What is kept is divided by its probability, as in dropout (arXiv:1603.09382, section 3; torchvision's
    `StochasticDepth(mode="row")`). The draws are those of torch's generator, as for dropout.

    Args:
        probability: of an image to be dropped, in [0, 1).

    Shape: (B, C, H, W) → the same.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return input
        return input * F.dropout(input.new_ones(input.shape[0], 1, 1, 1), self.probability)

    def extra_repr(self) -> str:
        return f"probability={self.probability:g}"
