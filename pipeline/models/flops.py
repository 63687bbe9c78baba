"""The arithmetic of a network, counted on tensors without memory."""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_IMAGES = 2  # batch norm in training wants more than one value a channel


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of the network on the meta device: shapes are computed, numbers are not."""
    return copy.deepcopy(model).to("meta")


def count_flops(
    model: nn.Module, input_shape: tuple[int, int, int], *, backward: bool = False
) -> dict[str, float]:
    """Count the floating-point operations for one image, a multiply-add being two.

    Counted by `torch.utils.flop_counter`: convolutions, matrix products and attention, which are all but about a hundredth of it.
    (torchinfo's and fvcore's last releases are of 2023 and 2022; torch's counter is kept with torch, but takes the gradient of a grouped
    convolution's weight for that of an ungrouped one.)

    Args:
        model: on any device; it is left alone.
        input_shape: (C, H, W) of an image.
        backward: count the gradients too, except that by the images, which training does not need.

    Returns:
        The count of every module by its name, the whole under "". Modules that count nothing may be missing; with BACKWARD only the
        whole is given.
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
    """Each of the two gradients takes as many operations as the forward pass; REST ends with which of them are wanted."""
    transposed, wanted = rest[4], rest[-1]
    positions = prod((input_shape if transposed else grad_shape)[2:])
    return 2 * grad_shape[0] * positions * prod(weight_shape) * sum(wanted[:2])


_FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}
