"""Loads weights from a file.

The weights are ours, torchvision's for the networks that both have, or those of the library that built the
network.
"""

import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.resnet import ResNet
from pipeline.models.weights_file import REMEDY, read_weights_file
from pipeline.models.weights_part import Part, Weights, find_part
from pipeline.process.notice import tell

_log = logging.getLogger(__name__)

_TORCHVISION_NAMES = (
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^layer(\d)\."), lambda match: f"stages.{int(match[1]) - 1}."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "head."),
)


def from_torchvision(key: str) -> str:
    """Return our name of a tensor of torchvision's ResNets.

    >>> from_torchvision("layer1.0.downsample.0.weight")
    'stages.0.0.shortcut.0.weight'
    """
    for pattern, our_name in _TORCHVISION_NAMES:
        key = pattern.sub(our_name, key)
    return key


def load_pretrained(model: nn.Module, path: Path, *, is_main: bool = True, reset_head: bool = False) -> None:
    """Copy the weights of a file into the network: see `load_weights`.

    Args:
        model: as `build_model` returns it, on any device.
        path: `.safetensors`, or a file of `torch.save`, which is read with `weights_only`.
        is_main: True if this process says what it took, and warns.
        reset_head: leave the head as it was initialised, even if that of the file fits.

    Raises:
        UserError: no such file, no weights in it, weights of another network, or weights that are not finite
            floating-point numbers.
    """
    load_weights(model, path, read_weights_file(path), is_main=is_main, reset_head=reset_head)


def load_weights(
    model: nn.Module, path: Path, content: Any, *, is_main: bool = True, reset_head: bool = False
) -> None:
    """Copy weights into the network.

    A head for another number of classes stays as it was initialised, with a warning.

    Args:
        model: as `build_model` returns it, on any device.
        path: the name of the weights in messages.
        content: a state dict, or the checkpoint of a training script that has one in it. The names are the
            network's own or, for our ResNets, torchvision's, with any prefix. The head may have any name.
        is_main, reset_head: as for `load_pretrained`.

    Raises:
        UserError: no weights in the content, weights of another network, or weights that are not finite
            floating-point numbers.
    """
    state, head = model.state_dict(), _head_name(model)
    try:
        part, others = find_part(content, state, from_torchvision if isinstance(model, ResNet) else str)
    except ValueError as error:
        raise UserError(f"model.weights: {path} {error}; {REMEDY}") from None
    their_head = _name_of_head(part, state, head)
    if their_head is not None:
        part = part.renamed(their_head, head)
    weights, expected = part.weights, state
    untrained = _mismatched_head(weights, state, head)
    if untrained or reset_head:
        weights, expected = _without(weights, head), _without(state, head)
    _check_network(path, weights, expected)
    _check_numbers(path, part, expected)
    model.load_state_dict(weights, strict=False)
    if is_main:
        _tell(path, part, others, None if reset_head else their_head)
        if untrained and not reset_head:
            message = "model.weights: %s has no head for %d classes; the head (%s) starts untrained"
            _log.warning(message, path, len(state[untrained[0]]), head)


def _tell(path: Path, part: Part, others: list[str], their_head: str | None) -> None:
    """Log in one line which part of a file was taken, and how its names were changed."""
    said = []
    if part.place or others:
        said.append(f"took {part.label}{' (a moving average)' * part.is_average}")
    if others:
        said.append(f"did not take {', '.join(others)}")
    if part.stripped:
        said.append(f"stripped {' and '.join(part.stripped)} from the names")
    if part.left_out:
        more = f" and {len(part.left_out) - 3} more" if len(part.left_out) > 3 else ""
        said.append(f"left out {', '.join(part.left_out[:3])}{more}")
    if their_head is not None:
        said.append(f"took {their_head} for the head")
    line = "model.weights: %s: %s", path, "; ".join(said)
    if said and others:  # the user may have meant one of them
        _log.warning(*line)
    elif said:
        tell(_log, *line)


def _name_of_head(part: Part, state: Weights, head: str) -> str | None:
    """Return the other name of the head in the file: of the only layer that the network does not have, if its
    weight has as many inputs as the head's."""
    extra = {name.rpartition(".")[0] for name in part.names if name not in state}
    if f"{head}.weight" in part.names or len(extra) != 1:
        return None
    theirs, ours = part.weights.get(f"{(name := extra.pop())}.weight"), state.get(f"{head}.weight")
    fits = theirs is not None and ours is not None and theirs.shape[1:] == ours.shape[1:]
    return name if fits else None


def _mismatched_head(weights: Weights, state: Weights, head: str) -> list[str]:
    """Return the keys of the head that the file does not have, or has with another shape."""
    return [
        key
        for key, tensor in state.items()
        if key.startswith(f"{head}.") and (key not in weights or weights[key].shape != tensor.shape)
    ]


def _without(weights: Weights, layer: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"{layer}.")}


def _head_name(model: nn.Module) -> str:
    """Return the name of the layer that computes the logits: the last one with a weight for each class."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1]


def _check_network(path: Path, weights: Weights, expected: Weights) -> None:
    """Check that a file has the names and shapes of a network.

    Raises:
        UserError: names the first differences.
    """
    problems = _find_problems(weights, expected)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"model.weights: {path} is of another network than the model keys describe: "
            f"{'; '.join(problems[:3])}{more}"
        )


def _check_numbers(path: Path, part: Part, expected: Weights) -> None:
    """Check that the weights are finite numbers that the network can start from.

    Raises:
        UserError: names the first tensor that is not.
    """
    for name, tensor in part.weights.items():
        fault = _find_fault(tensor, expected[name].dtype) if name in expected else None
        if fault is not None:
            raise UserError(f"model.weights: {path}: {'.'.join((*part.place, part.names[name]))} {fault}")


def _find_fault(tensor: torch.Tensor, dtype: torch.dtype) -> str | None:
    """Describe why a tensor cannot be copied into one of another dtype, with the remedy."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "is on the meta device and has no values; save the weights of a network that is loaded"
    if tensor.is_quantized or (dtype.is_floating_point and not tensor.is_floating_point()):
        return f"is of type {kind}; give floating-point weights, as they were before any conversion"
    if tensor.layout != torch.strided or tensor.is_complex():
        return f"is {kind} in {str(tensor.layout).removeprefix('torch.')} layout; give a dense real tensor"
    if dtype.is_floating_point:  # in the network's precision, in which a float64 may be infinite
        wrong = int((~tensor.to(dtype).isfinite()).sum())
        if wrong:
            return (
                f"is NaN or infinite in {wrong} of {tensor.numel()} places; "
                "give weights of a run that did not diverge"
            )
    return None


def _find_problems(weights: Weights, expected: Weights) -> list[str]:
    """Describe every difference between the file and the network, the most helpful first."""
    shapes = [
        f"{key} is {tuple(weights[key].shape)} in the file and {tuple(tensor.shape)} in the network"
        + _remedy(key)
        for key, tensor in expected.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    missing = [
        f"the file has no {key}"
        for key in expected
        if key not in weights and not key.endswith("num_batches_tracked")
    ]
    extra = [f"the network has no {key}" for key in weights if key not in expected]
    return [*shapes, *missing, *extra]


def _remedy(key: str) -> str:
    return " (see model.stem, and the channels of the images)" if key == "stem.0.weight" else ""
