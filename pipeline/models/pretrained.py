"""Weights from a file: ours, torchvision's for the networks that we share, or those of the library that built the network."""

import logging
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import UserError
from pipeline.models.resnet import ResNet

_log = logging.getLogger(__name__)

_PREFIXES = re.compile(r"^(?:module\.|_orig_mod\.)+")  # of DDP and torch.compile
_TORCHVISION_NAMES = (
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^layer(\d)\."), lambda match: f"stages.{int(match[1]) - 1}."),
    (re.compile(r"\.downsample\."), ".shortcut."),
    (re.compile(r"^fc\."), "head."),
)


def from_torchvision(key: str) -> str:
    """Our name of a tensor of torchvision's ResNets.

    >>> from_torchvision("layer1.0.downsample.0.weight")
    'stages.0.0.shortcut.0.weight'
    """
    for pattern, ours in _TORCHVISION_NAMES:
        key = pattern.sub(ours, key)
    return key


def load_pretrained(model: nn.Module, path: Path, *, is_main: bool = True) -> None:
    """Copy the weights of a file into the network. A head for another number of classes stays as it was initialised, with a warning.

    Args:
        model: as `build_model` returns it, on any device.
        path: `.safetensors`, or `.pth` or `.pt` as `torch.save` writes a state dict, which is read with `weights_only`; the keys are the
            network's own or, for our ResNets, torchvision's.
        is_main: whether this process is the one that warns.

    Raises:
        UserError: no such file, no weights in it, or weights of another network.
    """
    weights = _read(path)
    if (
        isinstance(model, ResNet) and "layer1.0.conv1.weight" in weights
    ):  # not by the head, which self-supervised weights lack
        weights = {from_torchvision(key): tensor for key, tensor in weights.items()}
    own = model.state_dict()
    head = _head(model)
    kept = [
        key
        for key in own
        if key.startswith(f"{head}.") and (key not in weights or weights[key].shape != own[key].shape)
    ]
    if kept:
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(f"{head}.")}
    problems = _problems(
        weights, {key: tensor for key, tensor in own.items() if not (kept and key.startswith(f"{head}."))}
    )
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"model.weights: {path} is of another network than the model keys ask for: {'; '.join(problems[:3])}{more}"
        )
    model.load_state_dict(weights, strict=False)
    if kept and is_main:
        _log.warning(
            "model.weights: %s has no head for %d classes; the head (%s) starts untrained",
            path,
            len(own[kept[0]]),
            head,
        )


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise UserError(
            f"model.weights: {path} does not exist; give a .safetensors or .pth file, or null"
        ) from None
    except (
        OSError,
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # whose message advises to run the code in the file
            reason = "it is no file of torch.save's, or holds more than tensors"
        raise UserError(
            f"model.weights: {path} cannot be read ({reason}); give weights as .safetensors, or a state dict as torch.save writes it"
        ) from None
    for wrapper in ("state_dict", "model"):  # of timm's and torchvision's training scripts
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        raise UserError(f"model.weights: {path} holds no state dict (names and tensors)")
    return {_PREFIXES.sub("", key): tensor for key, tensor in content.items()}


def _head(model: nn.Module) -> str:
    """Name of the layer that makes the logits: the last one with a weight for each class."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return names[-1]


def _problems(weights: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> list[str]:
    """What keeps the weights from fitting, the telling things first."""
    shapes = [
        f"{key} is {tuple(weights[key].shape)} in the file and {tuple(tensor.shape)} in the network{_remedy(key)}"
        for key, tensor in own.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    missing = [
        f"the file has no {key}"
        for key in own
        if key not in weights and not key.endswith("num_batches_tracked")
    ]
    extra = [f"the network has no {key}" for key in weights if key not in own]
    return [*shapes, *missing, *extra]


def _remedy(key: str) -> str:
    return " (see model.stem, and the channels of the images)" if key == "stem.0.weight" else ""
