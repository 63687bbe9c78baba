"""The blocks that ResNets are made of. No block adds in place to an activation that backward or Grad-CAM needs."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

# The output of a block feeds two consumers, the next block's convolution and its shortcut. Our kernels hand it out twice, so that
# backward adds the two gradients while it reads them; otherwise both are one tensor.
Activation = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class NormAct(nn.BatchNorm2d):
    """Batch norm, then an optional residual, then an optional ReLU.

    Args:
        channels: C.
        fused: in training on a GPU, do all three in our Triton kernels (`kernels/batch_norm_act.py`), which move fewer bytes than the
            compiler's; the count of batches, which nothing reads, then stays 0. On the CPU torch's own batch norm is the faster one.
        relu: end with a ReLU.
        branches: the output feeds two consumers; fused, it is handed out twice.

    Shape: (B, C, H, W) → the same; the residual likewise.
    """

    def __init__(self, channels: int, fused: bool = False, relu: bool = True, branches: bool = False):
        super().__init__(channels)
        self.fused, self.relu, self.branches = fused, relu, branches

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> Activation:  # type: ignore[override]
        if self.fused and self.training and input.is_cuda:
            from kernels.batch_norm_act import batch_norm_act, batch_norm_act_twice

            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            op = batch_norm_act_twice if self.branches else batch_norm_act
            return op(input, self.weight, self.bias, self.running_mean, self.running_var, residual, self.relu, self.momentum, self.eps)
        y = super().forward(input)
        if residual is not None:
            y = y + residual
        return F.relu(y) if self.relu else y


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


class Projection(nn.Sequential):
    """Option B of He et al. 2015: a 1x1 convolution with batch norm.

    Shape: (B, in_channels, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, fused: bool):
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), NormAct(out_channels, fused, relu=False))


def shortcut(option: Literal["A", "B"], in_channels: int, out_channels: int, stride: int, fused: bool) -> nn.Module:
    """The way past a block: the identity, or option A or B where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return Projection(in_channels, out_channels, stride, fused)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut: y = relu(f(x) + s(x)) (He et al. 2015, figure 5 left).

    Args:
        in_channels, channels: of the input and the output.
        stride: of the first convolution.
        option: shortcut where the shape changes.
        fused_norm: batch norm, residual and ReLU by our own kernels in training.
        branches: another block follows.

    Shape: (B, in_channels, H, W) → (B, channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        option: Literal["A", "B"],
        fused_norm: bool = False,
        branches: bool = True,
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = NormAct(channels, fused_norm)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = NormAct(channels, fused_norm, branches=branches)
        self.shortcut = shortcut(option, in_channels, channels, stride, fused_norm)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Activation) -> Activation:
        main, past = x if isinstance(x, tuple) else (x, x)
        y = self.bn1(self.conv1(main))
        return self.bn2(self.conv2(y), residual=self.shortcut(past))
