"""Networks by name."""

from torch import nn

from pipeline.config import ModelConfig
from pipeline.models.resnet import ResNet

__all__ = ["ResNet", "build_model", "cam_target_layer", "num_parameters"]

# Blocks per stage and channels per stage. resnet18: He et al. 2015, table 1, with the stem of section 4.2; resnet20: section 4.2.
_ARCHITECTURES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "resnet18": ((2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet20": ((3, 3, 3), (16, 32, 64)),
}


def build_model(config: ModelConfig, num_classes: int, in_channels: int = 3) -> nn.Module:
    """Build the network, float32, on the current default device, initialised from torch's global generator.

    >>> model = build_model(ModelConfig(name="resnet20", shortcut="A"), num_classes=10)
    >>> num_parameters(model)
    269722
    """
    depths, widths = _ARCHITECTURES[config.name]
    return ResNet(depths, widths, num_classes, in_channels, config.shortcut, config.zero_init_residual, config.fused_norm)


def cam_target_layer(model: nn.Module) -> nn.Module:
    """The layer that Grad-CAM explains by default: the last stage, whose output is the last with a spatial extent."""
    assert isinstance(model, ResNet)
    return model.stages[-1]


def num_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
