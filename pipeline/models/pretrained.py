"""Loads weights from a file.

The weights are ours, torchvision's for the networks that both have, or those of the library that built the
network.
"""

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import UserError, first_line
from pipeline.models.resnet import ResNet

_log = logging.getLogger(__name__)

_Weights = dict[str, torch.Tensor]

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DDP and torch.compile
_TORCHVISION_NAMES = (
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^layer(\d)\."), lambda match: f"stages.{int(match[1]) - 1}."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "head."),
)
_READ_ERRORS = (
    OSError,
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
)


def from_torchvision(key: str) -> str:
    """Return our name of a tensor of torchvision's ResNets.

    >>> from_torchvision("layer1.0.downsample.0.weight")
    'stages.0.0.shortcut.0.weight'
    """
    for pattern, our_name in _TORCHVISION_NAMES:
        key = pattern.sub(our_name, key)
    return key


def load_pretrained(model: nn.Module, path: Path, *, is_main: bool = True) -> None:
    """Copy the weights of a file into the network.

    A head for another number of classes stays as it was initialised, with a warning.

    Args:
        model: as `build_model` returns it, on any device.
        path: `.safetensors`, or `.pth` or `.pt` as `torch.save` writes a state dict, which is read with
            `weights_only`. The keys are the network's own or, for our ResNets, torchvision's.
        is_main: True if this process prints the warning.

    Raises:
        UserError: no such file, no weights in it, or weights of another network.
    """
    weights, state = _read(path), model.state_dict()
    # recognised by a block, because self-supervised weights have no head
    if isinstance(model, ResNet) and "layer1.0.conv1.weight" in weights:
        weights = {from_torchvision(key): tensor for key, tensor in weights.items()}
    head = _head_name(model)
    untrained = _mismatched_head(weights, state, head)
    if untrained:
        weights, expected = _without(weights, head), _without(state, head)
    else:
        expected = state
    problems = _find_problems(weights, expected)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"model.weights: {path} is of another network than the model keys describe: "
            f"{'; '.join(problems[:3])}{more}"
        )
    model.load_state_dict(weights, strict=False)
    if untrained and is_main:
        num_classes = len(state[untrained[0]])
        _log.warning(
            "model.weights: %s has no head for %d classes; the head (%s) starts untrained",
            path,
            num_classes,
            head,
        )


def _mismatched_head(weights: _Weights, state: _Weights, head: str) -> list[str]:
    """Return the keys of the head that the file does not have, or has with another shape."""
    return [
        key
        for key, tensor in state.items()
        if key.startswith(f"{head}.") and (key not in weights or weights[key].shape != tensor.shape)
    ]


def _without(weights: _Weights, layer: str) -> _Weights:
    return {key: tensor for key, tensor in weights.items() if not key.startswith(f"{layer}.")}


def _read(path: Path) -> _Weights:
    """Read the state dict of a file, without the prefixes and containers of training scripts."""
    content = _load(path)
    for wrapper in ("state_dict", "model"):  # of timm's and torchvision's training scripts
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    is_full_dict = isinstance(content, dict) and bool(content)
    if not is_full_dict or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"model.weights: {path} holds no state dict (names and tensors)")
    return {_PREFIXES.sub("", key): tensor for key, tensor in content.items()}


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"model.weights: {path} does not exist; give a .safetensors or .pth file, or null"
        ) from None
    except _READ_ERRORS as error:
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):  # its message advises to run the code in the file
            reason = "it was not written by torch.save, or holds more than tensors"
        raise UserError(
            f"model.weights: {path} cannot be read ({reason}); "
            "give weights as .safetensors, or a state dict as torch.save writes it"
        ) from None


def _head_name(model: nn.Module) -> str:
    """Return the name of the layer that computes the logits: the last one with a weight for each class."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1]


def _find_problems(weights: _Weights, expected: _Weights) -> list[str]:
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
