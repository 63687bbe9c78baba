"""Residual networks: a stem, stages of blocks, global average pooling, a linear head."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.blocks import BasicBlock, NormAct, conv3x3


class ResNet(nn.Module):
    """A ResNet with the CIFAR stem (one 3x3 convolution, no max-pool).

    Args:
        depths: blocks in each stage.
        widths: channels of each stage; every stage but the first halves height and width.
        num_classes: outputs.
        in_channels: channels of the images.
        option: shortcut where the shape changes, A or B.
        zero_init_residual: start the last batch-norm scale of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        fused_norm: batch norm, residual and ReLU by our own kernels in training.

    Shape: (B, in_channels, H, W) → (B, num_classes) logits.
    """

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        option: Literal["A", "B"] = "B",
        zero_init_residual: bool = True,
        fused_norm: bool = False,
    ):
        super().__init__()
        self.stem = nn.Sequential(conv3x3(in_channels, widths[0]), NormAct(widths[0], fused_norm, branches=True))
        stages: list[nn.Module] = []
        channels = widths[0]
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                last = number == len(depths) - 1 and position == depth - 1
                blocks.append(BasicBlock(channels, width, stride, option, fused_norm, branches=not last))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        """He et al. 2015 (arXiv:1502.01852) for convolutions, by fan-out; torch's default for the head."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock):
                    nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images))
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))
