"""The names of the networks, and which keys of the model section mean something for which. Imports no torch."""

import difflib
import json
import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

if TYPE_CHECKING:
    from pipeline.config.schema import ModelConfig

BOTTLENECK_NETWORKS = ("resnet50", "resnet101", "resnet152")
IMAGENET_NETWORKS = ("resnet18", "resnet34", *BOTTLENECK_NETWORKS)
PLAIN_NETWORKS = ("plain20", "plain32", "plain44", "plain56")
CIFAR_NETWORKS = (
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    *PLAIN_NETWORKS,
    "wrn16",
    "wrn22",
    "wrn28",
    "wrn40",
)
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
    raise ValueError(
        f"no network is called {name!r}{hint}; there are {', '.join(NETWORKS)}, torchvision/NAME and timm/NAME"
    )


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

    def given(*keys: str) -> list[str]:
        return [key for key in keys if getattr(model, key) != defaults[key].default]

    def refuse(keys: list[str], why: str, instead: str = "") -> None:
        """All of the keys at once: over a recipe of another network they are rarely alone."""
        if keys:
            idle = " ".join(
                f"model.{key}={json.dumps(defaults[key].default)}".replace('"', "") for key in keys
            )
            raise ValueError(f"model.{keys[0]}: {why}; remove it ({idle} over a recipe){instead}")

    if library_of(name):
        keys = given(*_BLOCK_KEYS, "zero_init_residual", "fused_norm", "fused_stem", "sync_batchnorm")
        refuse(keys, f"{name} is built by {library_of(name)}, which does not know the key")
    if name == "davidnet":
        refuse(given(*_BLOCK_KEYS, "zero_init_residual"), "davidnet has one form only")
    if name in PLAIN_NETWORKS:
        keys = given("shortcut", "preactivation", "zero_init_residual")
        refuse(keys, f"{name} has no shortcuts", f", or use model.name={name.replace('plain', 'resnet')}")
    if model.sync_batchnorm and model.fused_norm:
        raise ValueError(
            "model.sync_batchnorm: the kernels of model.fused_norm know one process's statistics; set model.fused_norm=false"
        )
    if (
        model.fused_stem
        and (default_stem(name, image_size) if model.stem == "auto" else model.stem) == "imagenet"
    ):
        raise ValueError(
            f"model.fused_stem: {name} starts with a 7x7 convolution here; remove the key, or use model.stem=cifar"
        )
    if model.groups > 1:
        if name not in BOTTLENECK_NETWORKS:
            raise ValueError(
                f"model.groups: {name} has no bottlenecks to group; use model.name={', '.join(BOTTLENECK_NETWORKS)}"
            )
        if 64 * model.width % model.groups:
            raise ValueError(
                f"model.groups: does not divide the {64 * model.width} channels of the first bottleneck; use a power of 2"
            )
