"""Which layer Grad-CAM explains."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.davidnet import DavidNet
from pipeline.models.flops import on_meta
from pipeline.models.resnet import ResNet

_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def cam_target_layer(model: nn.Module, image_size: int = 224) -> nn.Module:
    """The layer that Grad-CAM explains by default: the one whose output is the last with a spatial extent, before pooling.

    It is found by sending an image through a copy on the meta device. In our networks it is the last stage, with pre-activation the norm
    behind it; for images so small that the last stage has one position, an earlier stage.

    Args:
        model: as `build_model` returns it; it is left alone.
        image_size: height and width of its images in pixels.

    Raises:
        UserError: no layer has such an output, as in a vision transformer, whose blocks pass tokens on.
    """
    found = model.get_submodule(_last_feature_map(model, image_size))
    if isinstance(model, ResNet | DavidNet) and found is model.stages:
        return model.stages[-1]  # gives the same, and its name says more
    return found


def _last_feature_map(model: nn.Module, image_size: int) -> str:
    """Name of the module that is the last to return (B, C, H, W) with H = W > 1 for a square image, if only the head comes after it."""
    copy = on_meta(model).eval()
    found, tokens_by = "", ""

    def look(name: str, module: nn.Module, output: Any) -> None:
        nonlocal found, tokens_by
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return
        _, *sizes = output.shape
        if output.ndim == 4 and sizes[1] == sizes[2]:
            if sizes[1] > 1 and not isinstance(module, _POOLS) and _all_pass(copy, name):
                found, tokens_by = name, ""
        elif (
            next(module.parameters(recurse=False), None) is not None
        ):  # weights applied to tokens, or to channels in the last place
            tokens_by = name

    for name, module in copy.named_modules():
        if name:
            module.register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
    channels = next(module.in_channels for module in copy.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        copy(torch.empty(1, channels, image_size, image_size, device="meta"))
    if not found or tokens_by:
        raise UserError(
            f"Grad-CAM needs a layer whose output is (batch, channels, height, width), and {type(model).__name__} has none before its head"
            + (f": {tokens_by} works on tokens" if tokens_by else "")
            + "; name a layer, or set log.explain=false"
        )
    return found


def _all_pass(model: nn.Module, name: str) -> bool:
    """Whether all that goes through the network goes through this module, as far as its place tells: not a branch inside a block."""
    *around, _ = name.split(".")
    containers = [model.get_submodule(".".join(around[: depth + 1])) for depth in range(len(around))]
    return all(
        isinstance(module, nn.Sequential) or (depth == 0 and isinstance(module, nn.ModuleList))
        for depth, module in enumerate(containers)
    )
