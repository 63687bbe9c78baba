"""The names of the networks, and which keys of the model section mean something for which. Imports no torch."""

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

if TYPE_CHECKING:
    from pipeline.config.schema import ModelConfig

BOTTLENECK_NETWORKS = ("resnet50", "resnet101", "resnet152")
IMAGENET_NETWORKS = ("resnet18", "resnet34", *BOTTLENECK_NETWORKS)
PLAIN_NETWORKS = ("plain20", "plain32", "plain44", "plain56")
CIFAR_NETWORKS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", *PLAIN_NETWORKS, "wrn16", "wrn22", "wrn28", "wrn40")
NETWORKS = (*IMAGENET_NETWORKS, *CIFAR_NETWORKS, "davidnet")
LIBRARIES = ("torchvision", "timm")

_BLOCK_KEYS = ("stem", "shortcut", "width", "groups", "squeeze_excitation", "preactivation")


def library_of(name: str) -> str | None:
    """`torchvision` or `timm` where the network is theirs, None where it is one of ours."""
    library, slash, _ = name.partition("/")
    return library if slash and library in LIBRARIES else None


def _check_name(name: str) -> str:
    if name in NETWORKS or (library_of(name) and re.fullmatch(r"[\w.-]+", name.partition("/")[2], re.ASCII)):
        return name
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    raise ValueError(f"no network is called {name!r}{hint}; there are {', '.join(NETWORKS)}, torchvision/NAME and timm/NAME")


NetworkName = Annotated[str, AfterValidator(_check_name)]


def default_stem(name: str, image_size: int) -> Literal["cifar", "imagenet"]:
    """What `model.stem: auto` means: see the key."""
    return "imagenet" if name in IMAGENET_NETWORKS and image_size > 64 else "cifar"


def check_model(model: "ModelConfig", image_size: int) -> None:
    """Refuse keys that the network, on images of this height and width, has no use for.

    Raises:
        ValueError: names the key and the remedy.
    """
    name, defaults = model.name, type(model).model_fields
    given = [key for key in _BLOCK_KEYS if getattr(model, key) != defaults[key].default]
    if not model.zero_init_residual and (library_of(name) or name == "davidnet" or name in PLAIN_NETWORKS):
        raise ValueError(
            f"model.zero_init_residual: the key has no part in {name}; remove it (model.zero_init_residual=true over a recipe)"
        )
    given_switches = [key for key in ("fused_norm", "fused_stem", "sync_batchnorm") if getattr(model, key)]
    if library_of(name) and (given or given_switches):
        key = [*given, *given_switches][0]
        raise ValueError(f"model.{key}: {name} is built by {library_of(name)}, which does not know the key; remove it")
    if model.sync_batchnorm and model.fused_norm:
        raise ValueError("model.sync_batchnorm: the kernels of model.fused_norm know one process's statistics; set model.fused_norm=false")
    if name == "davidnet" and given:
        raise ValueError(f"model.{given[0]}: davidnet has one form only; remove the key")
    if name in PLAIN_NETWORKS:
        for key in ("shortcut", "preactivation"):
            if key in given:
                raise ValueError(
                    f"model.{key}: {name} has no shortcuts; remove the key, or use model.name={name.replace('plain', 'resnet')}"
                )
    if model.fused_stem and (default_stem(name, image_size) if model.stem == "auto" else model.stem) == "imagenet":
        raise ValueError(f"model.fused_stem: {name} starts with a 7x7 convolution here; remove the key, or use model.stem=cifar")
    if model.groups > 1:
        if name not in BOTTLENECK_NETWORKS:
            raise ValueError(f"model.groups: {name} has no bottlenecks to group; use model.name={', '.join(BOTTLENECK_NETWORKS)}")
        if 64 * model.width % model.groups:
            raise ValueError(f"model.groups: does not divide the {64 * model.width} channels of the first bottleneck; use a power of 2")
