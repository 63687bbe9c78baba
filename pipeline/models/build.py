"""Builds a network by its name."""

from collections.abc import Mapping

from torch import nn

from pipeline.config import ModelConfig
from pipeline.config.model import library_of
from pipeline.models.external import build_library_network
from pipeline.models.families import build_network
from pipeline.models.layers import NormAct


def build_model(
    config: ModelConfig,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    other_sizes: Mapping[int, str] | None = None,
) -> nn.Module:
    """Build the network, float32, on the current default device, initialised from torch's global generator.

    Args:
        config: the model section. `weights` is not read here, but by `load_pretrained`.
        num_classes: outputs.
        in_channels: channels of the images.
        image_size: height and width of the images in pixels. The meaning of `stem: auto` depends on it.
        other_sizes: other heights and widths of images in the run, in pixels, each with the key that sets it.
            They matter only for networks of libraries: the config checks them for ours.

    Raises:
        UserError: a network of torchvision or timm that does not exist, or does not accept such images.

    >>> model = build_model(ModelConfig(name="resnet20", shortcut="A"), num_classes=10)
    >>> num_parameters(model)
    269722
    """
    if library_of(config.name):
        return build_library_network(config.name, num_classes, in_channels, image_size, other_sizes)
    model = build_network(config, num_classes, in_channels, image_size)
    for module in model.modules():
        if isinstance(module, NormAct):
            module.sync = config.sync_batchnorm
    return model


def num_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
