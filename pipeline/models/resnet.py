"""Defines residual networks: a stem, stages of blocks, global average pooling, a linear head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.blocks import (
    BasicBlock,
    Block,
    BlockOptions,
    BottleneckBlock,
    PreactivationBasicBlock,
    PreactivationBlock,
    PreactivationBottleneckBlock,
)
from pipeline.models.layers import NormAct, NormReluPool, Stem, StemConv

BlockType = (
    type[BasicBlock]
    | type[BottleneckBlock]
    | type[PreactivationBasicBlock]
    | type[PreactivationBottleneckBlock]
)


@dataclass(frozen=True)
class StageOptions:
    """The stages of a ResNet.

    Attributes:
        block: type of all blocks.
        depths: number of blocks in each stage.
        widths: channels of each stage. Every stage but the first halves height and width.
    """

    block: BlockType
    depths: Sequence[int]
    widths: Sequence[int]


@dataclass(frozen=True)
class StemOptions:
    """The stem of a ResNet.

    Attributes:
        kind: `cifar`, a 3x3 convolution (He et al. 2015, arXiv:1512.03385, section 4.2), or `imagenet`, a 7x7
            convolution with stride 2 and a 3x3 max-pool with stride 2 (table 1).
        width: channels.
        fused: use our own kernels in training: for a 3x3 stem, or for norm, ReLU and max-pool of the other.
    """

    kind: Literal["cifar", "imagenet"] = "cifar"
    width: int = 64
    fused: bool = False


class ResNet(nn.Module):
    """A ResNet or, if `options.shortcut` is None, the plain network for comparison.

    Args:
        stages: blocks, depths and widths.
        num_classes: outputs.
        in_channels: channels of the images.
        stem: kind and width.
        options: of the blocks.
        zero_init_residual: start the last batch-norm scale of each block at 0 (Goyal et al. 2017,
            arXiv:1706.02677, section 5.1). Blocks with pre-activation end in a convolution: its weights start
            at 0. Plain blocks would return 0, so they are not changed.

    Shape: (B, in_channels, H, W) → (B, num_classes) logits.
    """

    def __init__(
        self,
        stages: StageOptions,
        num_classes: int,
        in_channels: int = 3,
        stem: StemOptions = StemOptions(),
        options: BlockOptions = BlockOptions(),  # noqa: B008  # frozen
        zero_init_residual: bool = True,
    ):
        super().__init__()
        preactivation = issubclass(stages.block, PreactivationBlock)
        self.stem = _make_stem(stem, in_channels, options, preactivation)
        self.stages = _make_stages(stages, stem.width, options)
        channels = stages.widths[-1]
        self.norm = NormAct(channels, options.fused_norm) if preactivation else None
        self.head = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual and options.shortcut is not None)

    def _initialise(self, zero_init_residual: bool) -> None:
        """Initialise convolutions as in He et al. 2015 (arXiv:1502.01852), fan-out; the head as in torch."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, Block):
                    module.zero_init()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem(images))
        if self.norm is not None:
            features = self.norm(features)
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))


def _make_stem(
    stem: StemOptions, in_channels: int, options: BlockOptions, preactivation: bool
) -> nn.Sequential:
    """Make the first convolution, and its norm unless the first block begins with a norm."""
    branches = options.shortcut is not None
    if stem.kind == "imagenet":
        convolution = nn.Conv2d(in_channels, stem.width, 7, 2, padding=3, bias=False)
        if preactivation:
            return nn.Sequential(convolution, nn.MaxPool2d(3, 2, padding=1))
        return nn.Sequential(convolution, NormReluPool(stem.width, options.fused_norm, stem.fused, branches))
    if preactivation:
        return nn.Sequential(StemConv(in_channels, stem.width, stem.fused))
    return Stem(in_channels, stem.width, stem.fused, options.fused_norm, branches)


def _make_stages(stages: StageOptions, in_channels: int, options: BlockOptions) -> nn.Sequential:
    sequences: list[nn.Module] = []
    num_blocks, done = sum(stages.depths), 0
    for number, (depth, width) in enumerate(zip(stages.depths, stages.widths, strict=True)):
        blocks: list[nn.Module] = []
        for position in range(depth):
            stride = 2 if number > 0 and position == 0 else 1
            last = done == num_blocks - 1
            own_options = options.of_block(done, num_blocks)
            blocks.append(stages.block(in_channels, width, stride, own_options, branches=not last))
            in_channels, done = width, done + 1
        sequences.append(nn.Sequential(*blocks))
    return nn.Sequential(*sequences)
