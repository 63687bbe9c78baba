"""Counts the floating-point operations of a network, on tensors without memory.

torch's own counter is used with one correction: it takes the gradient of a grouped convolution's weight for
that of an ungrouped one. torchinfo and fvcore had their last releases in 2023 and 2022; torch's counter is
maintained with torch.
"""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_IMAGES = 2  # batch norm in training needs more than one value per channel


def on_meta(model: nn.Module) -> nn.Module:
    """Copy the network to the meta device, which computes shapes but no numbers."""
    return copy.deepcopy(model).to("meta")


def count_flops(
    model: nn.Module, input_shape: tuple[int, int, int], *, backward: bool = False
) -> dict[str, float]:
    """Count the floating-point operations for one image; a multiply-add is two operations.

    `torch.utils.flop_counter` counts convolutions, matrix products and attention: about 99 % of all
    operations.

    Args:
        model: on any device; it is not changed.
        input_shape: (C, H, W) of an image.
        backward: also count the gradients, except the one with respect to the images, which training does not
            need.

    Returns:
        The count of every module by its name, the total under "". Modules without operations can be missing.
        With BACKWARD there is only the total.
    """
    network = on_meta(model).train(backward)
    images = torch.empty(_IMAGES, *input_shape, device="meta")
    with (
        torch.set_grad_enabled(backward),
        FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter,
    ):
        logits = network(images)
        if backward:
            logits.sum().backward()
    if backward:
        return {"": counter.get_total_flops() / _IMAGES}
    root = type(network).__name__
    return {
        name.removeprefix("Global").removeprefix(root).removeprefix("."): sum(counts.values()) / _IMAGES
        for name, counts in counter.get_flop_counts().items()
    }


def _convolution_backward(
    grad_shape: Sequence[int], input_shape: Sequence[int], weight_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Count a convolution's backward pass: each gradient takes as many operations as the forward pass.

    The last item of REST tells which gradients are needed.
    """
    transposed, needed = rest[4], rest[-1]
    positions = prod((input_shape if transposed else grad_shape)[2:])
    return 2 * grad_shape[0] * positions * prod(weight_shape) * sum(needed[:2])


_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}
