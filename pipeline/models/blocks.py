"""The blocks that ResNets are made of. No block adds in place to an activation that backward or Grad-CAM needs."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. 2015 (arXiv:1512.03385, section 3.3): every stride-th pixel, new channels zero. No parameters.

    Shape: (B, C, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉). Half of the zero channels come before the copied ones.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.channels = (before, out_channels - in_channels - before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.channels))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Option B of He et al. 2015: a 1x1 convolution with batch norm."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def shortcut(option: Literal["A", "B"], in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The way past a block: the identity, or option A or B where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return (PadShortcut if option == "A" else projection)(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut: y = relu(f(x) + s(x)) (He et al. 2015, figure 5 left).

    Shape: (B, in_channels, H, W) → (B, channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, option: Literal["A", "B"]):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut(option, in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))
