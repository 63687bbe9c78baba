"""Finds the weights that torchvision and timm publish for their networks, by the names of these libraries."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch

from pipeline.atomic_io import sha256
from pipeline.config import ModelConfig
from pipeline.config.model import IMAGENET_NETWORKS, library_of
from pipeline.errors import UserError, first_line
from pipeline.models.external import (
    build_pretrained_timm,
    known_to_timm,
    pretrained_names_near,
    repository_of_timms,
)
from pipeline.models.hub_download import reach_hub

TIMMS_NAME = "pretrained"
_TORCHVISIONS_NAME = re.compile(r"DEFAULT|[A-Z][A-Z0-9_]*_V\d+")
_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")
# torchvision's names of our ResNets that are not called alike, by name, groups and width
_TWINS = {
    ("resnet50", 32, 2): "resnext50_32x4d",
    ("resnet101", 32, 4): "resnext101_32x8d",
    ("resnet101", 64, 4): "resnext101_64x4d",
    ("resnet50", 1, 2): "wide_resnet50_2",
    ("resnet101", 1, 2): "wide_resnet101_2",
}
# the keys of torchvision's networks that ours may have otherwise, so that the weights do not fit
_PLAIN_FORM = {"stem": "imagenet", "shortcut": "B", "preactivation": False, "squeeze_excitation": 0}


def names_library_weights(config: ModelConfig) -> bool:
    """Return True if `model.weights` is a name of torchvision or timm. A file of that name comes first."""
    value = config.weights
    if value is None or Path(value).exists():
        return False
    return value == TIMMS_NAME or _TORCHVISIONS_NAME.fullmatch(value) is not None


def can_be_read_offline(config: ModelConfig, image_size: int) -> bool:
    """Check the name of library weights, and return True if no download is needed to read `model.weights`.

    Args:
        config: the section `model`.
        image_size: height and width of the images in pixels, on which the stem may depend.

    Raises:
        UserError: the library has no such weights for this network.
    """
    if not names_library_weights(config):
        return True
    if config.weights == TIMMS_NAME:
        _check_timms_name(config)
        return False  # only the hub's own client knows its cache
    return _cached_file(_torchvisions_weights(config, image_size).url).exists()


def read_library_weights(config: ModelConfig, image_size: int, *, progress: bool = True) -> tuple[Path, Any]:
    """Download weights of a library, unless its cache has them.

    torchvision keeps files in the folder of `torch.hub`. Their names hold the first digits of the SHA-256,
    which is verified at every start. timm keeps them in the cache of the Hugging Face Hub.

    Args:
        config: the section `model`; `weights` is such a name.
        image_size: height and width of the images in pixels, which some networks of timm are built for, and
            on which the stem of ours may depend.
        progress: say what is downloaded, and show the progress.

    Returns:
        A name for messages, and the content: the file's, or the state dict of a network.

    Raises:
        UserError: there are no such weights for this network, they cannot be downloaded, or they are damaged.
    """
    if config.weights == TIMMS_NAME:
        _check_timms_name(config)
        name = config.name.partition("/")[2]
        try:
            with _without_lines_of_retries():
                place = repository_of_timms(name)
                if place is not None:
                    reach_hub(*place, is_main=progress)
                return Path(config.name), build_pretrained_timm(name, image_size).state_dict()
        except Exception as error:  # each transport of the hub has errors of its own
            raise _not_downloaded(config, config.name, error, "the cache of the Hugging Face Hub") from None
    weights = _torchvisions_weights(config, image_size)
    path = _cached_file(weights.url)
    try:
        content = weights.get_state_dict(
            progress=progress, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:
        if path.exists():
            raise _damaged(path, error) from None
        raise _not_downloaded(config, weights.url, error, str(path)) from None
    except Exception as error:  # a wrong hash is a RuntimeError; damaged bytes end in errors of any type
        raise _damaged(path, error) from None
    _verify(path)
    return path, content


@contextmanager
def _without_lines_of_retries() -> Iterator[None]:
    """Mute the hub's client, which warns of each of its many tries: one message tells of the last one."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _torchvisions_weights(config: ModelConfig, image_size: int) -> Any:
    """Return the entry of torchvision's list of weights, with its address."""
    from torchvision import models  # takes seconds

    value, name = config.weights, config.name.partition("/")[2]
    assert value is not None
    if library_of(config.name) is None:
        name = _twin_of(config, image_size)
    if library_of(config.name) == "timm" or name not in models.list_models(module=models):
        remedy = f"give {TIMMS_NAME}" if library_of(config.name) == "timm" else "give a file, or null"
        also = f"such as resnet50, whose weights are {', '.join(models.ResNet50_Weights.__members__)}"
        raise UserError(
            f"model.weights: {value} names weights of torchvision, which has none for {config.name}; "
            f"{remedy}, or another network, {also}"
        )
    known = models.get_model_weights(name).__members__
    if value not in known:
        raise UserError(
            f"model.weights: torchvision has no weights {value} for {name}; there are {', '.join(known)}"
        )
    return known[value]


def _twin_of(config: ModelConfig, image_size: int) -> str:
    """Return torchvision's name of one of our networks; empty if no network there has its name.

    Raises:
        UserError: torchvision's network of that name has another form.
    """
    if config.name not in IMAGENET_NETWORKS:
        return ""
    own = {
        "stem": config.stem_for(image_size),
        "shortcut": config.shortcut,
        "preactivation": bool(config.preactivation),
        "squeeze_excitation": config.squeeze_excitation,
    }
    theirs: dict[str, object] = {**_PLAIN_FORM}
    twin = _TWINS.get((config.name, config.groups, config.width))
    if twin is None:
        own |= {"groups": config.groups, "width": config.width}
        theirs |= {"groups": 1, "width": 1}
    other = [key for key, value in own.items() if value != theirs[key]]
    if other:
        given, needed = (
            ", ".join(f"model.{key}={_spelling(values[key])}" for key in other) for values in (own, theirs)
        )
        raise UserError(
            f"model.weights: {config.weights} names weights of torchvision, which has none for {config.name} "
            f"with {given}; give {needed}, or a file"
        )
    return twin or config.name


def _spelling(value: object) -> str:
    """Return a value as it stands on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_timms_name(config: ModelConfig) -> None:
    library, _, name = config.name.partition("/")
    if library != "timm":
        raise UserError(
            f"model.weights: {TIMMS_NAME} is for networks of timm, not for {config.name}; give a name of "
            "torchvision's weights, such as IMAGENET1K_V2, or model.name=timm/NAME"
        )
    if not known_to_timm(name):
        near = pretrained_names_near(name)
        hint = f"; did you mean {' or '.join(f'timm/{item}' for item in near)}?" if near else ""
        raise UserError(
            f"model.weights: timm has no {TIMMS_NAME} weights for {name}; timm.list_pretrained() lists the "
            f"networks that have some{hint}"
        )


def _cached_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _verify(path: Path) -> None:
    """Compare a file with the digits in its name: `torch.hub` does so after a download only."""
    digits = _HASH.search(path.name)
    if digits is not None and not sha256(path).startswith(digits[1]):
        raise _damaged(path, ValueError("its SHA-256 does not begin with the digits in its name"))


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"model.weights: {path} is damaged ({first_line(error)}); remove it if it is there, and start again: "
        "it is downloaded anew"
    )


def _not_downloaded(config: ModelConfig, what: str, error: Exception, place: str) -> UserError:
    return UserError(
        f"model.weights: {config.weights}: {what} cannot be downloaded ({first_line(error)}); connect to the "
        f"internet, or put the file into {place} beforehand, or give a file as model.weights"
    )
