"""Finds the layer that Grad-CAM explains by default."""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError, first_line
from pipeline.models.davidnet import DavidNet
from pipeline.models.resnet import ResNet
from pipeline.models.speednet import SpeedNet

_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def cam_target_layer(model: nn.Module, image_size: int = 224) -> nn.Module:
    """Return the last layer before pooling whose output has a spatial extent.

    An image is sent through a copy of the network: on the meta device, or, of our own networks, on the CPU.
    (On the meta device batch norm imports torch's compiler, which takes a second.) In our networks the result
    is the last stage or, with pre-activation, the norm after it. If the images are so small that the last
    stage has one position, it is an earlier stage.

    Args:
        model: as `build_model` returns it; it is not changed.
        image_size: height and width of its images in pixels.

    Raises:
        UserError: no layer has such an output, as in a vision transformer, whose blocks return tokens.
    """
    layer = model.get_submodule(_last_feature_map(model, image_size))
    if isinstance(model, ResNet | DavidNet | SpeedNet) and layer is model.stages:
        return model.stages[-1]  # the same output, with a clearer name
    return layer


def _last_feature_map(model: nn.Module, image_size: int) -> str:
    """Return the name of the last module with an output (B, C, H, W), H = W > 1, for a square image.

    Only the head may come after it.
    """
    is_ours = isinstance(model, ResNet | DavidNet | SpeedNet)
    device = "cpu" if is_ours and "torch._dynamo" not in sys.modules else "meta"
    copied = copy.deepcopy(model).to(device).eval()
    feature_map, token_layer = "", ""

    def note_output(name: str, module: nn.Module, output: Any) -> None:
        nonlocal feature_map, token_layer
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return
        _, *sizes = output.shape
        if output.ndim == 4 and sizes[1] == sizes[2]:
            if sizes[1] > 1 and not isinstance(module, _POOLS) and _is_on_main_path(copied, name):
                feature_map, token_layer = name, ""
        elif next(module.parameters(recurse=False), None) is not None:
            token_layer = name  # its weights are applied to tokens, or to channels in the last dimension

    for name, module in copied.named_modules():
        if name:
            module.register_forward_hook(
                lambda module, _, output, name=name: note_output(name, module, output)
            )
    channels = next((module.in_channels for module in copied.modules() if isinstance(module, nn.Conv2d)), 3)
    try:
        with torch.no_grad():
            copied(torch.zeros(1, channels, image_size, image_size, device=device))
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError) as error:
        raise UserError(
            f"Grad-CAM needs a layer whose output is (batch, channels, height, width), and none is found in "
            f"{type(model).__name__} without values ({first_line(error)}); name a layer, or set "
            "log.explain=false"
        ) from error
    if not feature_map or token_layer:
        reason = f": {token_layer} works on tokens" if token_layer else ""
        raise UserError(
            "Grad-CAM needs a layer whose output is (batch, channels, height, width), and "
            f"{type(model).__name__} has none before its head{reason}; name a layer, or set log.explain=false"
        )
    return feature_map


def _is_on_main_path(model: nn.Module, name: str) -> bool:
    """Return True if all data passes through a module, as far as its position tells: no branch of a block."""
    *parents, _ = name.split(".")
    containers = [model.get_submodule(".".join(parents[: depth + 1])) for depth in range(len(parents))]
    return all(
        isinstance(module, nn.Sequential) or (depth == 0 and isinstance(module, nn.ModuleList))
        for depth, module in enumerate(containers)
    )
