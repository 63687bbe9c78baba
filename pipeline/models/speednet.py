"""Defines the networks of airbench, which reach 94 and 96 % of CIFAR-10 in the shortest known training."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.fused import FusedLayer
from pipeline.models.layers import Activation, NormAct, PoolNormAct, as_pair, global_max

ActivationName = Literal["gelu", "silu"]
_KERNEL = 2  # height and width of the patches that are whitened
_EPS = 5e-4  # added to the variances of the patches
# 24 channels make cuDNN choose kernels for an older GPU: on an H200 the convolution after the whitening ran
# at 170 to 190 TFLOP/s, those of 64 channels and more at 420 to 790. With 32 channels a pixel takes 64 bytes
# in half precision, so that all loads are whole and aligned.
_CHANNEL_MULTIPLE = 32


class Whitening(nn.Conv2d, FusedLayer):
    """2x2 convolution whose outputs are uncorrelated and of variance 1 over the training images.

    The filters are the eigenvectors of the covariance of 2x2 patches, each divided by the root of its
    eigenvalue, then the same with the other sign (Page 2018, "How to train your ResNet", part 8; Jordan 2024,
    arXiv:2404.00498, section 3.2). They are not trained; the bias is. Until `fit` they are random.

    Args:
        in_channels: C.
        fused: in training on a GPU, compute `activated` in our Triton kernels
            (`kernels/whitening_stem/op.py`), which compute no gradient but that by the bias.

    Shape: (B, C, H, W) → (B, 8 C, H - 1, W - 1).
    """

    def __init__(self, in_channels: int, fused: bool = False):
        super().__init__(in_channels, 2 * in_channels * _KERNEL**2, _KERNEL)
        self._set_fused(fused)
        self.weight.requires_grad = False
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def fit(self, images: torch.Tensor) -> None:
        """Compute the filters.

        Args:
            images: (N, C, H, W) normalised training images, on the device of the weights; a few hundred will
                do.
        """
        patches = F.unfold(images.float(), _KERNEL)  # (N, C * 4, positions)
        flat = patches.transpose(0, 1).flatten(1)
        eigenvalues, eigenvectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])  # ascending
        filters = (eigenvectors / (eigenvalues + _EPS).sqrt()).T.flip(0)
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))

    def activated(self, images: torch.Tensor) -> torch.Tensor:
        """Return the GELU of the outputs; from our kernels with channels of zeros at the end."""
        if not (self._uses_kernels(images) or self._infers_on_kernels(images)):
            return F.gelu(self(images))
        from kernels.whitening_stem.op import whitening_stem

        assert self.bias is not None
        channels = -(-self.out_channels // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE
        return whitening_stem(images, self.weight, self.bias, channels)


class ConvGroup(nn.Module):
    """Convolution, 2x2 max-pool, norm, activation; then one or two times convolution, norm, activation.

    With three convolutions the first activation is added to the last norm's output. The filters of each
    convolution start as the identity on as many channels as there are inputs (Dirac initialisation); the
    other filters are torch's default. Norms have a bias and no scale.

    Args:
        in_channels, channels: of the input and the output.
        depth: number of convolutions.
        activation: after each norm.
        momentum: of the norms' running statistics.
        fused_norm: use our own kernels for max-pool, norm and activation in training.

    Shape: (B, in_channels, H, W) → (B, channels, ⌊H / 2⌋, ⌊W / 2⌋).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        depth: Literal[2, 3],
        activation: ActivationName,
        momentum: float,
        fused_norm: bool = False,
    ):
        super().__init__()
        self.residual = depth == 3
        norm = channels, fused_norm, activation
        self.conv1 = _dirac(in_channels, channels)
        self.norm1 = PoolNormAct(*norm, branches=self.residual, momentum=momentum)
        self.conv2, self.norm2 = _dirac(channels, channels), NormAct(*norm, momentum=momentum)
        if self.residual:
            self.conv3, self.norm3 = _dirac(channels, channels), NormAct(*norm, momentum=momentum)
        for module in self.children():
            if isinstance(module, NormAct):
                module.weight.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, residual = as_pair(self._pooled(x))
        x = self.norm2(self.conv2(first))
        return self.norm3(self.conv3(x), residual=residual) if self.residual else x

    def _pooled(self, x: torch.Tensor) -> Activation:
        """Return the output of the first norm.

        In training, an x without gradient, as behind a stem that is not trained any longer, needs less work.
        """
        pooled = self.norm1.after_convolution(x, self.conv1.padded_weight(x))
        return self.norm1(self.conv1(x)) if pooled is None else pooled


class PaddedConv(nn.Conv2d):
    """3x3 convolution that ignores further channels of its input, which must be 0.

    The weight gets zeros for them as it is used, so that its shape and its gradient are those without them.

    Shape: (B, in_channels or more, H, W) → (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.conv2d(input, self.padded_weight(input), padding=1)

    def padded_weight(self, input: torch.Tensor) -> torch.Tensor:
        """Return the weight with zeros for the further channels of an input."""
        further = input.shape[1] - self.in_channels
        return F.pad(self.weight, (0, 0, 0, 0, 0, further)) if further > 0 else self.weight


def _dirac(in_channels: int, channels: int) -> PaddedConv:
    convolution = PaddedConv(in_channels, channels)
    nn.init.dirac_(convolution.weight.data[:in_channels])
    return convolution


class SpeedNet(nn.Module):
    """The networks of airbench (Jordan 2024, arXiv:2404.00498, and its repository cifar10-airbench).

    A whitening convolution with a GELU, three groups of convolutions, a max-pool over all positions, and a
    head without bias, whose logits are divided by a constant.

    `speednet94` has two convolutions a group and 64, 256, 256 channels, as airbench94 has; its head starts
    with standard deviation 1. `speednet96` has three, and 128, 384, 512 channels, as airbench96 has.

    Args:
        name: `speednet94` or `speednet96`.
        num_classes: outputs.
        in_channels: channels of the images.
        activation: of the groups.
        fused_norm: use our own kernels for max-pool, batch norm and activation in training.
        fused_stem: use our own kernels for the whitening and its GELU in training.

    Shape: (B, in_channels, H, W) → (B, num_classes) logits; H and W at least 9.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int = 3,
        activation: ActivationName = "gelu",
        fused_norm: bool = False,
        fused_stem: bool = False,
    ):
        super().__init__()
        small = name == "speednet94"
        channels, depth = ((64, 256, 256), 2) if small else ((128, 384, 512), 3)
        momentum = 0.4 if small else 0.1
        self.stem = Whitening(in_channels, fused_stem)
        widths = [self.stem.out_channels, *channels]
        self.stages = nn.Sequential(
            *(
                ConvGroup(before, after, depth, activation, momentum, fused_norm)
                for before, after in zip(widths, channels, strict=False)
            )
        )
        self.head = nn.Linear(channels[-1], num_classes, bias=False)
        if small:
            self.head.weight.data.div_(self.head.weight.data.std())
        self.logit_scale = 1 / channels[-1] if small else 1 / 9

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stages(self.stem.activated(images))
        return self.head(global_max(features)) * self.logit_scale
