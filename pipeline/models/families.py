"""Builds our own networks by name, from the depths and widths of each family and the config."""

from dataclasses import dataclass

from torch import nn

from pipeline.config import ModelConfig
from pipeline.config.model import PLAIN_NETWORKS, SPEED_NETWORKS
from pipeline.models.blocks import (
    BasicBlock,
    BlockOptions,
    BottleneckBlock,
    PreactivationBasicBlock,
    PreactivationBottleneckBlock,
)
from pipeline.models.davidnet import DavidNet
from pipeline.models.resnet import BlockType, ResNet, StageOptions, StemOptions
from pipeline.models.speednet import SpeedNet

_PREACTIVATION: dict[BlockType, BlockType] = {
    BasicBlock: PreactivationBasicBlock,
    BottleneckBlock: PreactivationBottleneckBlock,
}


@dataclass(frozen=True)
class Family:
    """A family of networks.

    Attributes:
        depths: number of blocks in each stage.
        channels: of each stage, before a bottleneck's expansion. The first is also the stem's.
        block: basic or bottleneck.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128, 256, 512)
    block: BlockType = BasicBlock


def _cifar(depth: int, layers_outside: int) -> Family:
    """Return three stages of n blocks of two layers; depth = 6 n + layers_outside."""
    assert (depth - layers_outside) % 6 == 0, depth
    return Family(((depth - layers_outside) // 6,) * 3, (16, 32, 64))


FAMILIES: dict[str, Family] = {
    # He et al. 2015, arXiv:1512.03385, table 1
    "resnet18": Family((2, 2, 2, 2)),
    "resnet34": Family((3, 4, 6, 3)),
    "resnet50": Family((3, 4, 6, 3), block=BottleneckBlock),
    "resnet101": Family((3, 4, 23, 3), block=BottleneckBlock),
    "resnet152": Family((3, 8, 36, 3), block=BottleneckBlock),
    # section 4.2
    **{f"resnet{depth}": _cifar(depth, 2) for depth in (20, 32, 44, 56, 110)},
    **{f"plain{depth}": _cifar(depth, 2) for depth in (20, 32, 44, 56)},
    # Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1; their depth counts the projections
    **{f"wrn{depth}": _cifar(depth, 4) for depth in (16, 22, 28, 40)},
}


def build_network(config: ModelConfig, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build one of our own networks."""
    if config.name == "davidnet":
        return DavidNet(num_classes, in_channels, config.fused_norm, config.fused_stem)
    if config.name in SPEED_NETWORKS:
        kernels = config.fused_norm, config.fused_stem
        return SpeedNet(config.name, num_classes, in_channels, config.activation, *kernels)
    family, plain = FAMILIES[config.name], config.name in PLAIN_NETWORKS
    options = BlockOptions(
        shortcut=None if plain else config.shortcut,
        width=config.width,
        groups=config.groups,
        squeeze_excitation=config.squeeze_excitation,
        fused_norm=config.fused_norm,
        blur_pool=config.blur_pool,
        stochastic_depth=0.0 if plain else config.stochastic_depth,  # a plain block would return 0
    )
    # `model.width` widens the inner convolutions of a bottleneck, but all channels of basic blocks
    factor = family.block.expansion if family.block is BottleneckBlock else config.width
    block = _PREACTIVATION[family.block] if config.has_preactivation else family.block
    stages = StageOptions(block, family.depths, [factor * channels for channels in family.channels])
    stem = StemOptions(config.stem_for(image_size), family.channels[0], config.fused_stem)
    return ResNet(stages, num_classes, in_channels, stem, options, config.zero_init_residual)
