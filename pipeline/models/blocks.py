"""Defines the blocks of ResNets. No block adds in place to an activation that backward or Grad-CAM needs."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.layers import (
    Activation,
    NormAct,
    Projection,
    SqueezeExcitation,
    as_pair,
    conv1x1,
    conv3x3,
    make_shortcut,
)
from pipeline.models.optional_layers import StochasticDepth


@dataclass(frozen=True)
class BlockOptions:
    """The options that all blocks of a network share.

    Attributes:
        shortcut: for blocks that change the shape: A (zero-padded identity) or B (1x1 projection). None:
            plain blocks without any shortcut.
        width: factor for the channels of a bottleneck's 3x3 convolution.
        groups: of a bottleneck's 3x3 convolution (Xie et al. 2017, arXiv:1611.05431).
        squeeze_excitation: reduction of a gate at the end of the block's function; 0: no gate.
        fused_norm: use our own kernels for batch norm, residual and ReLU in training.
        blur_pool: blur the input of convolutions with a stride.
        stochastic_depth: probability of the last block to be dropped for an image, and in the options of one
            block that of this block.
    """

    shortcut: Literal["A", "B"] | None = "B"
    width: int = 1
    groups: int = 1
    squeeze_excitation: int = 0
    fused_norm: bool = False
    blur_pool: bool = False
    stochastic_depth: float = 0.0

    def of_block(self, number: int, num_blocks: int) -> "BlockOptions":
        """Return the options of one block: the probability to drop it rises in a line from the first block,
        which is always kept, to the last (Huang et al. 2016, section 3; timm's `drop_path_rate`)."""
        rate = self.stochastic_depth * number / max(num_blocks - 1, 1)
        return replace(self, stochastic_depth=rate)


class Block(nn.Module):
    """Base of the blocks: a function f of convolutions, and a shortcut s around it.

    Args of the subclasses:
        in_channels, channels: of the input and the output.
        stride: of the first 3x3 convolution.
        options: of the network.
        branches: True if another block follows: then two layers read the output.

    Shape: (B, in_channels, H, W) → (B, channels, ⌈H / stride⌉, ⌈W / stride⌉).
    """

    shortcut: nn.Module | None
    gate: SqueezeExcitation | None
    drop: StochasticDepth | None

    def zero_init(self) -> None:
        """Make f return 0, so that the block starts as its shortcut."""
        raise NotImplementedError

    def _last_norm(self, channels: int, options: BlockOptions, branches: bool) -> NormAct:
        """Return the norm at the end of f. Residual and ReLU come after a gate or a drop that follows it."""
        last = not options.squeeze_excitation and not options.stochastic_depth
        return NormAct(
            channels,
            options.fused_norm,
            activation="relu" if last else "none",
            branches=branches and options.shortcut is not None and last,
        )

    def _add_shortcut_and_gate(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions
    ) -> None:
        self.shortcut = self._make_shortcut(in_channels, channels, stride, options)
        reduction = options.squeeze_excitation
        self.gate = SqueezeExcitation(channels, reduction) if reduction else None
        self.drop = StochasticDepth(options.stochastic_depth) if options.stochastic_depth else None

    def _make_shortcut(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions
    ) -> nn.Module | None:
        if options.shortcut is None:
            return None
        shape = in_channels, channels, stride
        return make_shortcut(options.shortcut, *shape, options.fused_norm, options.blur_pool)

    def _join(self, y: torch.Tensor, norm: NormAct, x: torch.Tensor) -> Activation:
        """Return relu(drop(gate(norm(y))) + s(x))."""
        last = self.gate is None and self.drop is None
        if last and isinstance(self.shortcut, Projection):
            return norm.join(y, x, self.shortcut)
        residual = None if self.shortcut is None else self.shortcut(x)
        if last:
            return norm(y, residual=residual)
        y = self._gate_and_drop(norm(y))
        return F.relu(y if residual is None else y + residual)

    def _gate_and_drop(self, y: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            y = self.gate(y)
        return y if self.drop is None else self.drop(y)


class BasicBlock(Block):
    """Two 3x3 convolutions with batch norm, and a shortcut: y = relu(f(x) + s(x)).

    See He et al. 2015 (arXiv:1512.03385), figure 5 left.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride, blurred=options.blur_pool)
        self.bn1 = NormAct(channels, options.fused_norm)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = self._last_norm(channels, options, branches)
        self._add_shortcut_and_gate(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Activation) -> Activation:
        main, skip = as_pair(x)
        y = self.bn1(self.conv1(main))
        return self._join(self.conv2(y), self.bn2, skip)


class BottleneckBlock(Block):
    """1x1, 3x3 and 1x1 convolutions, the inner ones with a quarter of the channels.

    See He et al. 2015, figure 5 right. The stride is on the 3x3 convolution, as in Facebook's and
    torchvision's networks ("v1.5"). In the paper it is on the first 1x1 convolution.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        inner, fused = channels // self.expansion * options.width, options.fused_norm
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = NormAct(inner, fused)
        self.conv2 = conv3x3(inner, inner, stride, options.groups, options.blur_pool)
        self.bn2 = NormAct(inner, fused)
        self.conv3 = conv1x1(inner, channels)
        self.bn3 = self._last_norm(channels, options, branches)
        self._add_shortcut_and_gate(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Activation) -> Activation:
        main, skip = as_pair(x)
        y = self.bn1(self.conv1(main))
        y = self.bn2(self.conv2(y))
        return self._join(self.conv3(y), self.bn3, skip)


class PreactivationBlock(Block):
    """Base of the blocks with batch norm and ReLU before each convolution: y = f(x) + s(x).

    See He et al. 2016 (arXiv:1603.05027), figure 4e. A projection reads the activated input and has no norm,
    as in the paper's code and in Wide ResNets.
    """

    def _add_first_norm(self, in_channels: int, channels: int, stride: int, options: BlockOptions) -> None:
        assert options.shortcut is not None
        shape_changes = stride > 1 or in_channels != channels
        self.projects = shape_changes and options.shortcut == "B"
        self.bn1 = NormAct(in_channels, options.fused_norm, branches=self.projects)

    def _make_shortcut(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions
    ) -> nn.Module | None:
        if self.projects:
            return conv1x1(in_channels, channels, stride, options.blur_pool)
        return super()._make_shortcut(in_channels, channels, stride, options)

    def _function(self, activated: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.shortcut is not None
        main, activated = as_pair(self.bn1(x))
        y = self._gate_and_drop(self._function(main))
        return y + self.shortcut(activated if self.projects else x)


class PreactivationBasicBlock(PreactivationBlock):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, options: BlockOptions, branches: bool = True
    ):
        super().__init__()
        self._add_first_norm(in_channels, channels, stride, options)
        self.conv1 = conv3x3(in_channels, channels, stride, blurred=options.blur_pool)
        self.bn2 = NormAct(channels, options.fused_norm)
        self.conv2 = conv3x3(channels, channels)
        self._add_shortcut_and_gate(in_channels, channels, stride, options)

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
        self._add_first_norm(in_channels, channels, stride, options)
        self.conv1 = conv1x1(in_channels, inner)
        self.bn2 = NormAct(inner, fused)
        self.conv2 = conv3x3(inner, inner, stride, options.groups, options.blur_pool)
        self.bn3 = NormAct(inner, fused)
        self.conv3 = conv1x1(inner, channels)
        self._add_shortcut_and_gate(in_channels, channels, stride, options)

    def zero_init(self) -> None:
        nn.init.zeros_(self.conv3.weight)

    def _function(self, activated: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv1(activated))
        return self.conv3(self.bn3(self.conv2(y)))
