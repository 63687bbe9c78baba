"""Residual networks: a stem, stages of blocks, global average pooling, a linear head."""

from collections.abc import Sequence
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
from pipeline.models.layers import Activation, NormAct, Stem, StemConv

BlockType = (
    type[BasicBlock]
    | type[BottleneckBlock]
    | type[PreactivationBasicBlock]
    | type[PreactivationBottleneckBlock]
)


class ResNet(nn.Module):
    """A ResNet, or with `options.shortcut` None the plain network that it is compared with.

    Args:
        block: of which the network is made.
        depths: blocks in each stage.
        widths: channels of each stage; every stage but the first halves height and width.
        num_classes: outputs.
        in_channels: channels of the images.
        stem: `cifar`, a 3x3 convolution (He et al. 2015, arXiv:1512.03385, section 4.2), or `imagenet`, a 7x7 convolution with stride 2
            and a 3x3 max-pool with stride 2 (table 1).
        stem_width: channels of the stem.
        options: of the blocks.
        fused_stem: a 3x3 stem by our own kernels in training.
        zero_init_residual: start the last batch-norm scale of each block at 0 (Goyal et al. 2017, arXiv:1706.02677, section 5.1); in
            blocks with pre-activation, which end in a convolution, its weights. Plain blocks, which would return 0, are left alone.

    Shape: (B, in_channels, H, W) → (B, num_classes) logits.
    """

    def __init__(
        self,
        block: BlockType,
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        stem: Literal["cifar", "imagenet"] = "cifar",
        stem_width: int = 64,
        options: BlockOptions = BlockOptions(),  # noqa: B008  # frozen
        fused_stem: bool = False,
        zero_init_residual: bool = True,
    ):
        super().__init__()
        preactivation = issubclass(block, PreactivationBlock)
        self.stem = _stem(stem, in_channels, stem_width, options, fused_stem, preactivation)
        stages: list[nn.Module] = []
        channels = stem_width
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: list[nn.Module] = []
            for position in range(depth):
                stride = 2 if number > 0 and position == 0 else 1
                last = number == len(depths) - 1 and position == depth - 1
                blocks.append(block(channels, width, stride, options, branches=not last))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = NormAct(channels, options.fused_norm) if preactivation else None
        self.head = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual and options.shortcut is not None)

    def _initialise(self, zero_init_residual: bool) -> None:
        """He et al. 2015 (arXiv:1502.01852) for convolutions, by fan-out; torch's default for linear layers."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, Block):
                    module.zero_init()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._logits(self.stages(self.stem(images)))

    def front(self, images: torch.Tensor) -> Activation:
        """All but the last stage: (B, in_channels, H, W) → features."""
        return self.stages[:-1](self.stem(images))

    def back(self, features: Activation) -> torch.Tensor:
        """The last stage, which holds most of the parameters, and the head: features → (B, num_classes) logits."""
        return self._logits(self.stages[-1](features))

    def _logits(self, features: torch.Tensor) -> torch.Tensor:
        if self.norm is not None:
            features = self.norm(features)
        return self.head(F.adaptive_avg_pool2d(features, 1).flatten(1))

    def back_parameters(self) -> list[nn.Parameter]:
        """Of `back`: the first to have their gradients in a backward pass."""
        own = {
            id(parameter) for module in (self.stem, *self.stages[:-1]) for parameter in module.parameters()
        }
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def divide(self) -> None:
        """Prepare `front` and `back` for being compiled each for itself: what goes from one to the other is handed out once, not twice."""
        before = self.stages[-2][-1] if len(self.stages) > 1 else self.stem  # type: ignore[index]
        norms = [module for module in before.children() if isinstance(module, NormAct)]
        if norms:
            norms[-1].branches = False


def _stem(
    kind: Literal["cifar", "imagenet"],
    in_channels: int,
    channels: int,
    options: BlockOptions,
    fused: bool,
    preactivation: bool,
) -> nn.Sequential:
    """The first convolution, and its norm unless the first block begins with one."""
    if kind == "imagenet":
        convolution = nn.Conv2d(in_channels, channels, 7, 2, padding=3, bias=False)
        norm = [] if preactivation else [NormAct(channels, options.fused_norm)]
        return nn.Sequential(convolution, *norm, nn.MaxPool2d(3, 2, padding=1))
    if preactivation:
        return nn.Sequential(StemConv(in_channels, channels, fused))
    return Stem(in_channels, channels, fused, options.fused_norm, branches=options.shortcut is not None)
