"""Finds training batches that are too small for the batch norms of a network."""

import contextlib
from math import lcm, prod
from typing import Any

import torch
from torch import nn

from pipeline.config import MIX_SOURCES, Config, FileData, micro_batch_size
from pipeline.config.model import library_of
from pipeline.errors import UserError
from pipeline.models.build import build_model
from pipeline.models.flops import on_meta
from pipeline.models.freeze import freeze
from pipeline.models.layers import NormAct

_IMAGES = 2  # of the trial batch; any number gives the same shapes for an image


def check_norm_batches(config: Config, num_processes: int) -> None:
    """Check that every batch norm has at least two values for each channel in training.

    The variance of one value is not defined: torch raises an error, and a kernel would divide by 0. Only
    micro-batches of one image can have one value, where the feature map is 1x1; for larger ones, nothing is
    built. Evaluation uses the running statistics, so its batches may be of any size.

    Args:
        config: of the run.
        num_processes: processes that share the batch, which must divide it.

    Raises:
        UserError: a batch norm has one value for each channel; names the smallest batch that it can have.
    """
    if micro_batch_size(config, num_processes) > 1:
        return
    model = build_model(config.model, 2, image_size=config.image_size, other_sizes=config.other_image_sizes)
    freeze(model, config.model.freeze)
    for size in sorted(_training_sizes(config)):
        norm = _norm_of_one_value(model, size, several=num_processes > 1)
        if norm is not None:
            raise UserError(
                f"data.batch_size: {config.data.batch_size} means micro-batches of one image; of an image of "
                f"{size} pixels, the batch norm {norm} of {config.model.name} sees one value for each "
                f"channel, and it needs two; use {_remedies(config, num_processes)}"
            )


def _training_sizes(config: Config) -> set[int]:
    """Return heights and widths of the training images, in pixels; `augment.progressive` ends at the last."""
    streamed = isinstance(config.data, FileData)
    return {config.image_size, *(size for _, size in config.augment.progressive if streamed)}


def _norm_of_one_value(model: nn.Module, image_size: int, *, several: bool) -> str | None:
    """Return the name of the first batch norm that has one value for each channel of an image.

    With SEVERAL processes, the norms that share their statistics are left out, and so are norms in evaluation
    mode.
    """
    trained = {name for name, module in model.named_modules() if module.training}
    shape, found = (_IMAGES, 3, image_size, image_size), list[str]()
    for network, device in ((on_meta(model), "meta"), (model, "cpu")):
        handles = []
        for name, module in network.named_modules():
            is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) and name in trained
            if is_norm and not (several and _is_shared(module)):

                def record(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
                    if prod(inputs[0].shape) == _IMAGES * inputs[0].shape[1]:
                        found.append(name)

                handles.append(module.register_forward_pre_hook(record))
        # NotImplementedError: the meta device does not have the operator
        with torch.no_grad(), contextlib.suppress(NotImplementedError):
            network.eval()(torch.zeros(shape, device=device))
            break
    return found[0] if found else None


def _is_shared(norm: nn.Module) -> bool:
    return isinstance(norm, NormAct) and norm.sync


def _remedies(config: Config, num_processes: int) -> str:
    """Return the keys and values that give every micro-batch at least two images."""
    accumulate, size = config.optimizer.accumulate, config.data.batch_size
    unit = lcm(num_processes * accumulate, num_processes * MIX_SOURCES[config.augment.mix])
    least = -(-2 * num_processes * accumulate // unit) * unit
    remedies = [f"data.batch_size={least} or more"]
    if accumulate > 1:
        fewer = next(n for n in range(accumulate - 1, 0, -1) if size % (num_processes * n) == 0)
        remedies.append(f"optimizer.accumulate={fewer}")
    if num_processes > 1 and library_of(config.model.name) is None:
        remedies.append("model.sync_batchnorm=true")
    return ", or ".join(remedies)
