"""The layer to explain: by its name in the network, or the last one that still has height and width."""

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import UserError

_POOLS = (nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(eq=False)
class _Output:
    """What a module gave in one forward pass."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    address: int
    calls: int = 1


def find_layer(model: nn.Module, image: Tensor, name: str | None = None) -> tuple[str, nn.Module]:
    """The module whose output a map is drawn from.

    By default the last layer before pooling whose output has more than one position, which for a ResNet is its last stage: its features
    are the ones nearest to the classes, and it still says where they were found (Selvaraju et al. 2017, section 3). It is found by a
    forward pass in evaluation mode, so that the rule holds for any convolutional network and any size of image.

    Args:
        model: from (1, C, H, W) images to logits; left as it was found.
        image: (1, C, S, S) float32, on the device of the model.
        name: a name of `model.named_modules()`, such as `stages.2`; None: the default.

    Returns:
        The name and the module.

    Raises:
        UserError: no such layer (names the nearest), or one that gives no map.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> find_layer(net, torch.zeros(1, 3, 8, 8))[0]
    '1'
    """
    outputs = _trace(model, image)
    # of a square image; (batch, height, width, channels), as some transformers have it, is none
    spatial = [output for output in outputs if len(output.shape) == 4 and output.shape[2] == output.shape[3] > 1]
    if not spatial:
        raise UserError(f"layer: no layer of the network has an output with height and width for images of {_size(image.shape)}")
    before_pooling = [output for output in spatial if not isinstance(output.module, _POOLS)] or spatial
    default = before_pooling[-1]
    for output in reversed(before_pooling[:-1]):  # the list of stages gives what its last stage gives: the latter's name says more
        if not (type(default.module) is type(output.module) is nn.Sequential and output.address == default.address):
            break
        default = output
    if name is None:
        _refuse_tokens(outputs[outputs.index(default) + 1 :])
        return default.name, default.module
    modules = dict(model.named_modules())
    found = next((output for output in outputs if output.name == name), None)
    if name not in modules or not name:
        near = difflib.get_close_matches(name, [output.name for output in spatial], n=4, cutoff=0.5)
        raise UserError(f"layer: the network has no layer {name!r}; near: {', '.join(near or [default.name])}")
    if found is None or found not in spatial:
        gives = "is not used" if found is None else f"gives {_size(found.shape)}, which has no height and width"
        raise UserError(f"layer: {name} {gives}; choose one such as {default.name}")
    if found.calls > 1:
        raise UserError(f"layer: {name} is used {found.calls} times in one pass; choose one that is used once, such as {default.name}")
    return name, modules[name]


def _refuse_tokens(after: list[_Output]) -> None:
    """After the default layer comes the head alone: weights for tokens there mean that the network is a transformer."""
    for output in after:
        tokens = len(output.shape) == 3 or (len(output.shape) == 4 and output.shape[2] != output.shape[3])
        if tokens and next(output.module.parameters(recurse=False), None) is not None:
            raise UserError(f"layer: {output.name} works on tokens, which have no height and width; choose an earlier layer by its name")


@torch.no_grad()
def _trace(model: nn.Module, image: Tensor) -> list[_Output]:
    """The outputs of all named modules that gave a tensor, in the order in which they were done."""
    done: dict[str, _Output] = {}
    kept: list[Tensor] = []  # alive, so that no two share an address

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                kept.append(output)
                calls = done.pop(name).calls + 1 if name in done else 1
                done[name] = _Output(name, module, tuple(output.shape), output.data_ptr(), calls)

        return module.register_forward_hook(hook)

    modes = [(module, module.training) for module in model.modules()]
    handles = [watch(name, module) for name, module in model.named_modules() if name]
    try:
        model.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return list(done.values())


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape[1:])
