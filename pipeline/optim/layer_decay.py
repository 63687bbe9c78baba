"""Numbers the layers of a network from its head backwards, for `optimizer.layer_decay`."""

from typing import Any

from torch import nn

_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LISTED_BLOCKS = 4  # of a network, at least; fewer are parts, such as an encoder and a head


def distances_from_head(model: nn.Module) -> dict[str, int]:
    """Return for each parameter the number of layers between its own layer and the head.

    A layer is a block of the network: an element of a sequence of modules that consists of further modules,
    or one of four or more such modules that the network names one by one.
    All that comes before the first block is the first layer (the stem). All that comes after the last block
    is the head, with the distance 0. What stands between two blocks belongs to the second one. A network
    without blocks, such as VGG, has a layer for each weight of two or more dimensions. The layers of timm's
    networks are those that timm lists, as in its `param_groups_layer_decay`.

    Args:
        model: its parameters are in the order of the forward pass.
    """
    numbers = _timms_layers(model) if hasattr(model, "group_matcher") else _layers(model)
    last = max(numbers.values(), default=0)
    return {name: last - numbers.get(name, last) for name, _ in model.named_parameters()}


def _timms_layers(model: Any) -> dict[str, int]:
    from timm.models import group_parameters

    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)


def _layers(model: nn.Module) -> dict[str, int]:
    """Return the number of each parameter's layer, counted from the stem."""
    blocks = _blocks(model)
    layer, numbers = 0, dict[str, int]()
    for name, parameter in model.named_parameters():
        if not blocks:
            layer += parameter.ndim > 1
            numbers[name] = max(layer, 1)
            continue
        inside = [number for number, block in enumerate(blocks, start=1) if name.startswith(f"{block}.")]
        layer = inside[0] if inside else layer
        numbers[name] = layer + (not inside and layer > 0)
    return numbers


def _blocks(model: nn.Module) -> list[str]:
    """Return the names of the blocks, in order; no block is inside of another one."""
    containers = {name for name, module in model.named_modules() if _is_container(module)}
    if _lists_blocks(model):
        containers.add("")
    blocks: list[str] = []
    for name, module in model.named_modules():
        is_element = name.rpartition(".")[0] in containers and name not in containers
        if is_element and _is_composed(module) and not (blocks and name.startswith(f"{blocks[-1]}.")):
            blocks.append(name)
    return blocks


def _lists_blocks(model: nn.Module) -> bool:
    """Return True for a network that names its blocks one by one, such as GoogLeNet and Inception: the
    sequences inside of these blocks are parallel branches."""
    blocks = [child for child in model.children() if _is_composed(child) and not _is_container(child)]
    return len(blocks) >= _LISTED_BLOCKS


def _is_container(module: nn.Module) -> bool:
    """Return True for a sequence, also one of a class of its own if it is a sequence of blocks."""
    of_blocks = all(_is_composed(child) for child in module.children())
    return type(module) in _PLAIN or (isinstance(module, _PLAIN) and of_blocks)


def _is_composed(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and any(True for _ in module.parameters())
