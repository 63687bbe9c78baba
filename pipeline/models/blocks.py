"""The blocks that ResNets are made of. No block adds in place to an activation that backward or Grad-CAM needs."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import (
    Activation,
    NormAct,
    Projection,
    SqueezeExcitation,
    both,
    conv1x1,
    conv3x3,
    shortcut,
)


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network have in common.

    Attributes:
        shortcut: where the shape changes: A (zero-padded identity), B (1x1 projection); None: the block is plain, without a shortcut.
        width: factor for the channels of a bottleneck's 3x3 convolution.
        groups: of a bottleneck's 3x3 convolution (Xie et al. 2017, arXiv:1611.05431).
        squeeze_excitation: reduction of a gate at the end of the block's function; 0: no gate.
        fused_norm: batch norm, residual and ReLU by our own kernels in training.
    """

    shortcut: Literal["A", "B"] | None = "B"
    width: int = 1
    groups: int = 1
    squeeze_excitation: int = 0
    fused_norm: bool = False


class Block(nn.Module):
    """Base of the blocks: a function of convolutions, f, and the way past it, s.

    Args of the subclasses:
        in_channels, channels: of the input and the output.
        stride: of the first 3x3 convolution.
        options: of the network.
        branches: another block follows, so that the output feeds two consumers.

    Shape: (B, in_channels, H, W) → (B, channels, ⌈H / stride⌉, ⌈W / stride⌉).
    """

    shortcut: nn.Module | None
    gate: SqueezeExcitation | None

    def zero_init(self) -> None:
        """Make f return 0, and the block start as its shortcut."""
        raise NotImplementedError

    def _last_norm(self, channels: int, options: BlockOptions, branches: bool) -> NormAct:
        """The norm at the end of f. With a gate behind it, it is the gate whose output takes the residual and the ReLU."""
        gated = bool(options.squeeze_excitation)
        return NormAct(
            channels,
            options.fused_norm,
            relu=not gated,
            branches=branches and options.shortcut is not None and not gated,
        )

    def _ways_past(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        self.shortcut = (
            None
            if options.shortcut is None
            else shortcut(options.shortcut, in_channels, channels, stride, options.fused_norm)
        )
        self.gate = (
            SqueezeExcitation(channels, options.squeeze_excitation) if options.squeeze_excitation else None
        )

    def _join(self, y: torch.Tensor, norm: NormAct, past: torch.Tensor) -> Activation:
        """relu(gate(norm(y)) + s(past))"""
        if self.gate is None and isinstance(self.shortcut, Projection):
            return norm.join(y, past, self.shortcut)
        residual = None if self.shortcut is None else self.shortcut(past)
        if self.gate is None:
            return norm(y, residual=residual)
        y = self.gate(norm(y))
        return F.relu(y if residual is None else y + residual)


class BasicBlock(Block):
    """Two 3x3 convolutions with batch norm and a shortcut: y = relu(f(x) + s(x)) (He et al. 2015, arXiv:1512.03385, figure 5 left)."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = NormAct(channels, options.fused_norm)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = self._last_norm(channels, options, branches)
        self._ways_past(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Activation) -> Activation:
        main, past = both(x)
        y = self.bn1(self.conv1(main))
        return self._join(self.conv2(y), self.bn2, past)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions, inside with a quarter of the channels (He et al. 2015, figure 5 right).

    The stride is on the 3x3 convolution, as in Facebook's and torchvision's networks ("v1.5"); the paper has it on the first 1x1.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        inner, fused = channels // self.expansion * options.width, options.fused_norm
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = NormAct(inner, fused)
        self.conv2 = conv3x3(inner, inner, stride, options.groups)
        self.bn2 = NormAct(inner, fused)
        self.conv3 = conv1x1(inner, channels)
        self.bn3 = self._last_norm(channels, options, branches)
        self._ways_past(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Activation) -> Activation:
        main, past = both(x)
        y = self.bn1(self.conv1(main))
        y = self.bn2(self.conv2(y))
        return self._join(self.conv3(y), self.bn3, past)


class PreactivationBlock(Block):
    """Base of the blocks with batch norm and ReLU before each convolution: y = f(x) + s(x) (He et al. 2016, arXiv:1603.05027, figure 4e).

    A projection reads the activated input, as in the paper's code and in Wide ResNets; it has no norm of its own.
    """

    def _start(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        assert options.shortcut is not None
        changes = stride > 1 or in_channels != channels
        self.projects = changes and options.shortcut == "B"
        self.bn1 = NormAct(in_channels, options.fused_norm, branches=self.projects)

    def _end(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        assert options.shortcut is not None
        if self.projects:
            self.shortcut = conv1x1(in_channels, channels, stride)
        else:
            self.shortcut = shortcut(options.shortcut, in_channels, channels, stride, options.fused_norm)
        self.gate = (
            SqueezeExcitation(channels, options.squeeze_excitation) if options.squeeze_excitation else None
        )

    def _function(self, activated: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.shortcut is not None
        main, past = both(self.bn1(x))
        y = self._function(main)
        if self.gate is not None:
            y = self.gate(y)
        return y + self.shortcut(past if self.projects else x)


class PreactivationBasicBlock(PreactivationBlock):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        self._start(in_channels, channels, stride, options)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = NormAct(channels, options.fused_norm)
        self.conv2 = conv3x3(channels, channels)
        self._end(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.conv2.weight)  # a zero scale before a ReLU would get no gradient

    def _function(self, activated: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.bn2(self.conv1(activated)))


class PreactivationBottleneckBlock(PreactivationBlock):
    """1x1, 3x3 and 1x1 convolutions."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        inner, fused = channels // self.expansion * options.width, options.fused_norm
        self._start(in_channels, channels, stride, options)
        self.conv1 = conv1x1(in_channels, inner)
        self.bn2 = NormAct(inner, fused)
        self.conv2 = conv3x3(inner, inner, stride, options.groups)
        self.bn3 = NormAct(inner, fused)
        self.conv3 = conv1x1(inner, channels)
        self._end(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.conv3.weight)

    def _function(self, activated: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv1(activated))
        return self.conv3(self.bn3(self.conv2(y)))
