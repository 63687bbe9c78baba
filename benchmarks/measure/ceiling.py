"""Counts the arithmetic of a training step."""

from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.models.flops import count_flops


def flops_per_image(
    model: ModelConfig, num_classes: int, image_size: tuple[int, int], channels: int = 3
) -> float:
    """Return the floating-point operations of forward and backward for one training image, by `count_flops`.

    A multiply-add is two operations.
    """
    network = build_model(model, num_classes, channels, max(image_size))
    return count_flops(network, (channels, *image_size), backward=True)[""]
