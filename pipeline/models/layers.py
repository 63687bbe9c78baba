"""Defines the layers of the blocks: norms with activation, stems, convolutions and shortcuts."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from kernels.arguments import Activation as ActivationName
from kernels.arguments import Norm
from pipeline.models.fused import FusedLayer
from pipeline.models.optional_layers import BlurConv2d
from pipeline.models.sync_batch_norm import sync_batch_norm

_FEW_POSITIONS = 16

# Two layers read the output of a block: the next block's convolution and its shortcut. Our kernels return the
# output twice, so that the backward kernel adds the two gradients while it reads them. Otherwise it is one
# tensor.
Activation = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def activate(x: torch.Tensor, activation: ActivationName) -> torch.Tensor:
    """Return the activation of x by torch's own functions."""
    if activation == "none":
        return x
    return {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}[activation](x)


def as_pair(x: Activation) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an activation once for each of the two layers that read it."""
    return x if isinstance(x, tuple) else (x, x)


class NormAct(nn.BatchNorm2d, FusedLayer):
    """Batch norm, then an optional residual, then an activation.

    Args:
        channels: C.
        fused: in training on a GPU, do all three in our Triton kernels (`kernels/batch_norm_act/op.py`),
            which move fewer bytes than the compiler's, and likewise in evaluations (`FusedLayer`). The count
            of batches, which nothing reads, then stays 0. On the CPU torch's own batch norm is faster and is
            used.
        activation: at the end.
        branches: True if two layers read the output. The fused kernel then returns it twice.
        momentum: weight of a batch in the running statistics.

    Attributes:
        sync: in training on several processes, compute the statistics over all their batches
            (`model.sync_batchnorm`).

    Shape: (B, C, H, W) → the same. The residual has the same shape.
    """

    sync = False

    def __init__(
        self,
        channels: int,
        fused: bool = False,
        activation: ActivationName = "relu",
        branches: bool = False,
        momentum: float = 0.1,
    ):
        super().__init__(channels, momentum=momentum)
        self._set_fused(fused)
        self.branches = branches
        self.activation: ActivationName = activation

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> Activation:  # type: ignore[override]
        if self._uses_kernels(input):
            from kernels.batch_norm_act.op import batch_norm_act, batch_norm_act_twice

            assert self.momentum is not None
            op = batch_norm_act_twice if self.branches else batch_norm_act
            return op(input, self._norm(), residual, self.activation, self.momentum, self.eps)
        if self._infers_on_kernels(input):
            return self._infer(input, residual)
        across = self.sync and self.training and torch.distributed.is_initialized()
        y = sync_batch_norm(self, input) if across else super().forward(input)
        if residual is not None:
            y = y + residual
        return activate(y, self.activation)

    def join(self, input: torch.Tensor, x: torch.Tensor, projection: "Projection") -> Activation:
        """Return relu(norm(input) + projection(x))."""
        convolution, other = projection
        assert isinstance(other, NormAct) and (self.activation, other.activation) == ("relu", "none")
        if self._infers_on_kernels(input):
            return self._infer(input, convolution(x), other._norm())
        if not (self._uses_kernels(input) and other._uses_kernels(input)):  # one of the two may be frozen
            return self(input, residual=projection(x))
        from kernels.dual_batch_norm_act.op import dual_batch_norm_act, dual_batch_norm_act_twice

        op = dual_batch_norm_act_twice if self.branches else dual_batch_norm_act
        assert self.momentum is not None
        return op(input, self._norm(), convolution(x), other._norm(), self.momentum, self.eps)

    def _infer(
        self,
        input: torch.Tensor,
        residual: torch.Tensor | None = None,
        residual_norm: Norm | None = None,
        pool: bool = False,
    ) -> torch.Tensor:
        from kernels.norm_act_inference.op import norm_act_inference

        return norm_act_inference(
            input, self._norm(), residual, residual_norm, self.activation, self.eps, pool
        )

    def _norm(self) -> Norm:
        assert self.running_mean is not None and self.running_var is not None
        return Norm(self.weight, self.bias, self.running_mean, self.running_var)


class PoolNormAct(NormAct):
    """2x2 max-pool, then batch norm and an activation.

    Args: as for `NormAct`. The fused kernels (`kernels/pool_norm_act/op.py`) pool as well.

    Shape: (B, C, H, W) → (B, C, ⌊H / 2⌋, ⌊W / 2⌋).
    """

    def forward(self, input: torch.Tensor) -> Activation:  # type: ignore[override]
        if self._infers_on_kernels(input):
            return self._infer(input, pool=True)
        if not self._uses_kernels(input):
            return super().forward(F.max_pool2d(input, 2))
        from kernels.pool_norm_act.op import pool_norm_act, pool_norm_act_twice

        assert self.momentum is not None
        op = pool_norm_act_twice if self.branches else pool_norm_act
        return op(input, self._norm(), self.activation, self.momentum, self.eps)

    def after_convolution(self, x: torch.Tensor, weight: torch.Tensor) -> Activation | None:
        """Return the layer's output for conv2d(x, weight, padding=1), or None if no kernel does both at once.

        The kernels (`kernels/conv_pool_norm_act/op.py`) compute no gradient by x.
        """
        if not self._uses_kernels(x) or x.requires_grad or not weight.requires_grad:
            return None
        from kernels.conv_pool_norm_act.op import conv_pool_norm_act, conv_pool_norm_act_twice, supports

        if not supports(x, weight):
            return None
        assert self.momentum is not None
        op = conv_pool_norm_act_twice if self.branches else conv_pool_norm_act
        return op(x, weight, self._norm(), self.activation, self.momentum, self.eps)


class NormReluPool(NormAct):
    """Batch norm, ReLU and 3x3 max-pool with stride 2, as after the first convolution for ImageNet.

    Args:
        channels, fused, branches: as for `NormAct`.
        pools: if `fused`, the kernels pool too in training (`kernels/norm_relu_pool/op.py`); otherwise torch
            does.

    Shape: (B, C, H, W) → (B, C, ⌈H / 2⌉, ⌈W / 2⌉).
    """

    def __init__(self, channels: int, fused: bool = False, pools: bool = False, branches: bool = False):
        super().__init__(channels, fused, branches=branches and fused and pools)
        self.pools = fused and pools

    def forward(self, input: torch.Tensor) -> Activation:  # type: ignore[override]
        if not (self.pools and self._uses_kernels(input)):
            y = super().forward(input)
            assert isinstance(y, torch.Tensor), "only the kernels that pool return a pair"
            return F.max_pool2d(y, 3, 2, 1)
        from kernels.norm_relu_pool.op import norm_relu_pool, norm_relu_pool_twice

        assert self.momentum is not None
        op = norm_relu_pool_twice if self.branches else norm_relu_pool
        return op(input, self._norm(), self.momentum, self.eps)


def global_max(x: torch.Tensor) -> torch.Tensor:
    """Return the maximum of each channel, or NaN; its gradient goes to the first position that has it.

    `x.amax((2, 3))` finds the positions of its gradient by comparing. torch.compile compares the unrounded
    values of the layer before with the rounded maximum, which can equal none of them: the gradient is NaN.
    torch's adaptive max-pool has no deterministic backward. In training a few positions are compared one
    after another, which torch.compile makes one elementwise kernel each way.

    Shape: (B, C, H, W) → (B, C).
    """
    positions = x.flatten(2)
    if positions.shape[2] > _FEW_POSITIONS or not x.requires_grad:
        return positions.max(2).values
    return _MaxOfFew.apply(positions)


class _MaxOfFew(torch.autograd.Function):
    """The maximum over the last dimension. It keeps the position, a byte, for its gradient."""

    @staticmethod
    def forward(ctx, positions):
        best, *others = positions.unbind(2)
        place = torch.zeros_like(best, dtype=torch.uint8)
        for number, other in enumerate(others, start=1):
            takes = (other > best) | other.isnan()
            best, place = torch.where(takes, other, best), torch.where(takes, number, place)
        ctx.save_for_backward(place)
        ctx.num_positions = positions.shape[2]
        return best.clone()

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        (place,) = ctx.saved_tensors
        numbers = torch.arange(ctx.num_positions, device=place.device, dtype=torch.uint8)
        # (B, positions, C), so that the gradient by a channels_last x is channels_last
        gradients = torch.where(place.unsqueeze(1) == numbers[:, None], gradient.unsqueeze(1), 0.0)
        return gradients.transpose(1, 2)


class SqueezeExcitation(nn.Module):
    """A gate in (0, 1) per channel, from the means of all channels.

    See Hu et al. 2018 (arXiv:1709.01507), section 3.

    Args:
        channels: C.
        reduction: the gate is computed from C / reduction numbers, at least one.

    Shape: (B, C, H, W) → the same.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, max(channels // reduction, 1))
        self.excite = nn.Linear(max(channels // reduction, 1), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class StemConv(nn.Conv2d, FusedLayer):
    """3x3 convolution of images, with a border of zeros. Images need no gradient.

    Args:
        in_channels, out_channels: of the images and of the output.
        fused: in training on a GPU, use our Triton kernels (`kernels/stem_conv/op.py`), which are for three
            input channels.

    Shape: (B, in_channels, H, W) → (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, fused: bool = False):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)
        self._set_fused(fused)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self._uses_kernels(input) or self._infers_on_kernels(input):
            from kernels.stem_conv.op import stem_conv

            return stem_conv(input, self.weight)
        return super().forward(input)


class Stem(nn.Sequential):
    """3x3 convolution of images, batch norm and ReLU.

    Args:
        in_channels, channels: of the images and of the output.
        fused_stem, fused_norm: as for the two layers. With both, the stem is one op, which never writes the
            output of the convolution to memory (`kernels/stem_conv_norm_act/op.py`).
        branches: True if two layers read the output.

    Shape: (B, in_channels, H, W) → (B, channels, H, W).
    """

    def __init__(
        self, in_channels: int, channels: int, fused_stem: bool, fused_norm: bool, branches: bool = False
    ):
        super().__init__(
            StemConv(in_channels, channels, fused_stem), NormAct(channels, fused_norm, branches=branches)
        )

    @property
    def fused(self) -> bool:
        """Return True if both layers use our kernels, and so are one op."""
        convolution, norm = self
        return bool(convolution.fused and norm.fused)

    def forward(self, input: torch.Tensor) -> Activation:
        convolution, norm = self
        assert isinstance(convolution, StemConv) and isinstance(norm, NormAct) and norm.momentum is not None
        if not (convolution._uses_kernels(input) and norm._uses_kernels(input)):
            return norm(convolution(input))
        from kernels.stem_conv_norm_act.op import stem_conv_norm_act, stem_conv_norm_act_twice

        op = stem_conv_norm_act_twice if norm.branches else stem_conv_norm_act
        return op(input, convolution.weight, norm._norm(), norm.momentum, norm.eps)


def conv3x3(
    in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, blurred: bool = False
) -> nn.Conv2d:
    """Make a 3x3 convolution without bias; with BLURRED a stride of 2 or more blurs its input."""
    kind = BlurConv2d if blurred and stride > 1 else nn.Conv2d
    return kind(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, blurred: bool = False) -> nn.Conv2d:
    """Make a 1x1 convolution without bias; BLURRED as for `conv3x3`."""
    kind = BlurConv2d if blurred and stride > 1 else nn.Conv2d
    return kind(in_channels, out_channels, 1, stride, bias=False)


class PadShortcut(nn.Module):
    """Option A of He et al. 2015 (arXiv:1512.03385, section 3.3): every stride-th pixel, channels of zeros.

    It has no parameters. Half of the zero channels come before the copied channels.

    Shape: (B, C, H, W) → (B, out_channels, ⌈H / stride⌉, ⌈W / stride⌉).
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

    def __init__(self, in_channels: int, out_channels: int, stride: int, fused: bool, blurred: bool = False):
        super().__init__(
            conv1x1(in_channels, out_channels, stride, blurred),
            NormAct(out_channels, fused, activation="none"),
        )


def make_shortcut(
    option: Literal["A", "B"],
    in_channels: int,
    out_channels: int,
    stride: int,
    fused: bool,
    blurred: bool = False,
) -> nn.Module:
    """Make the shortcut of a block: the identity, or option A or B if the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride)
    return Projection(in_channels, out_channels, stride, fused, blurred)
