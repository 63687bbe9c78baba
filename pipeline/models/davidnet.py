"""Defines David Page's ResNet-9 for CIFAR-10, known as DavidNet."""

import torch
from torch import nn

from pipeline.models.layers import NormAct, Stem, conv3x3, global_max

_LOGIT_SCALE = 0.125


class ConvNormAct(nn.Sequential):
    """3x3 convolution, batch norm, ReLU. Shape: (B, in_channels, H, W) → (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, fused_norm: bool):
        super().__init__(conv3x3(in_channels, channels), NormAct(channels, fused_norm))


class ResidualBranch(nn.Module):
    """y = x + f(x), where f ends with a ReLU. Shape: (B, channels, H, W) → the same."""

    def __init__(self, channels: int, fused_norm: bool):
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, fused_norm)
        self.conv2 = ConvNormAct(channels, channels, fused_norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x))


class DavidNet(nn.Module):
    """The network of Page's entry to DAWNBench.

    See https://github.com/davidcpage/cifar10-fast and "How to train your ResNet", parts 3 and 4. It has a 3x3
    convolution with 64 channels, then three stages. Each doubles the channels, and halves height and width by
    a 2x2 max-pool after the ReLU; the first and the last have residual branches. A max-pool over all
    positions and a head without bias follow; the logits are multiplied by 0.125. As in the original,
    convolutions are initialised by torch's default, and batch-norm scales start at 1.

    Args:
        num_classes: outputs.
        in_channels: channels of the images.
        fused_norm: use our own kernels for batch norm and ReLU in training.
        fused_stem: use our own kernels for the first convolution in training.

    Shape: (B, in_channels, H, W) → (B, num_classes) logits; H and W at least 8.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, fused_norm: bool = False, fused_stem: bool = False
    ):
        super().__init__()
        self.stem = Stem(in_channels, 64, fused_stem, fused_norm)
        self.stages = nn.Sequential(
            nn.Sequential(ConvNormAct(64, 128, fused_norm), nn.MaxPool2d(2), ResidualBranch(128, fused_norm)),
            nn.Sequential(ConvNormAct(128, 256, fused_norm), nn.MaxPool2d(2)),
            nn.Sequential(
                ConvNormAct(256, 512, fused_norm), nn.MaxPool2d(2), ResidualBranch(512, fused_norm)
            ),
        )
        self.head = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images))
        return self.head(global_max(features)) * _LOGIT_SCALE
