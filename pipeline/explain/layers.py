"""Finds the layer to explain by its name in the network."""

import difflib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.errors import UserError


@dataclass
class _Output:
    """The shape of a module's output, and its number of calls, in one forward pass."""

    shape: tuple[int, ...]
    calls: int

    def is_map_of(self, image: Tensor) -> bool:
        """True for height and width in the image's ratio; attention has (B, heads, tokens, channels)."""
        if len(self.shape) != 4 or self.shape[2] * self.shape[3] == 1:
            return False
        return self.shape[2] * image.shape[3] == self.shape[3] * image.shape[2]


def find_layer(model: nn.Module, image: Tensor, name: str) -> nn.Module:
    """Return the module of that name, if a map can be made from its output.

    Args:
        model: from (1, C, H, W) images to logits; its modes are restored.
        image: (1, C, H, W) float32, on the device of the model.
        name: a name of `model.named_modules()`, such as `stages.2`.

    Raises:
        UserError: no such layer (names the nearest), or its output has no height and width, or it is called
            several times.

    >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
    >>> find_layer(net, torch.zeros(1, 3, 8, 8), "1")
    ReLU()
    """
    outputs = _trace(model, image)
    maps = [known for known, output in outputs.items() if output.is_map_of(image) and output.calls == 1]
    if not name or name not in dict(model.named_modules()):
        near = difflib.get_close_matches(name, maps, n=4, cutoff=0.5) or maps[-4:]
        raise UserError(f"layer: the network has no layer {name!r}; near: {', '.join(near) or 'none'}")
    if name not in maps:
        output = outputs.get(name)
        if output is None:
            reason = "is not used, or does not return a tensor"
        elif output.is_map_of(image):
            reason = f"is used {output.calls} times in one pass"
        else:
            reason = f"returns {' x '.join(map(str, output.shape[1:]))}, which has no height and width"
        raise UserError(f"layer: {name} {reason}; choose another, such as {maps[-1] if maps else 'none'}")
    return model.get_submodule(name)


@torch.no_grad()
def _trace(model: nn.Module, image: Tensor) -> dict[str, _Output]:
    """Return the outputs of all named modules that return a tensor, in the order of their calls."""
    outputs: dict[str, _Output] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                calls = outputs.pop(name).calls + 1 if name in outputs else 1
                outputs[name] = _Output(tuple(output.shape), calls)

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
    return outputs
