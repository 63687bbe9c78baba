"""Names the networks, and defines the section `model`. Imports no torch."""

import difflib
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config.base import OptionalFilePath, Section, as_tuple

BOTTLENECK_NETWORKS = ("resnet50", "resnet101", "resnet152")
IMAGENET_NETWORKS = ("resnet18", "resnet34", *BOTTLENECK_NETWORKS)
PLAIN_NETWORKS = ("plain20", "plain32", "plain44", "plain56")
_SMALL_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
_WIDE_NETWORKS = ("wrn16", "wrn22", "wrn28", "wrn40")
CIFAR_NETWORKS = (*_SMALL_RESNETS, *PLAIN_NETWORKS, *_WIDE_NETWORKS)
SPEED_NETWORKS = ("speednet94", "speednet96")
SINGLE_FORM_NETWORKS = ("davidnet", *SPEED_NETWORKS)
SMALLEST_IMAGES = {"davidnet": 8, "speednet94": 9, "speednet96": 9}  # pixels; the others take any size
NETWORKS = (*IMAGENET_NETWORKS, *CIFAR_NETWORKS, *SINGLE_FORM_NETWORKS)
LIBRARIES = ("torchvision", "timm")


def library_of(name: str) -> str | None:
    """Return `torchvision` or `timm` if the network is that library's, None if it is one of ours."""
    library, slash, _ = name.partition("/")
    return library if slash and library in LIBRARIES else None


def _check_name(name: str) -> str:
    if name in NETWORKS or (library_of(name) and re.fullmatch(r"[\w.-]+", name.partition("/")[2], re.ASCII)):
        return name
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"; did you mean {near[0]}" if near else ""
    there = f"{', '.join(NETWORKS)}, torchvision/NAME and timm/NAME"
    raise ValueError(f"no network is called {name!r}{hint}; there are {there}")


NetworkName = Annotated[str, AfterValidator(_check_name)]

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(as_tuple)]


def default_stem(name: str, image_size: int) -> Literal["cifar", "imagenet"]:
    """Return the stem that `model.stem: auto` stands for: see the key."""
    return "imagenet" if name in IMAGENET_NETWORKS and image_size > 64 else "cifar"


class ModelConfig(Section):
    name: NetworkName = Field(
        default="resnet18",
        description="Architecture: resnet18, 34, 50, 101, 152; for small images resnet20, 32, 44, 56, 110, "
        "plain20, 32, 44, 56 (without shortcuts), wrn16, 22, 28, 40 (wide), davidnet (ResNet-9), speednet94 "
        "and 96 (airbench); "
        "torchvision/NAME or timm/NAME for a network of these libraries",
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        default="auto",
        description="First layers: `cifar` 3x3 convolution, `imagenet` 7x7 with stride 2 and max-pool; "
        "`auto`: `imagenet` for resnet18 to resnet152 on images of more than 64 pixels",
    )
    shortcut: Literal["A", "B"] = Field(
        default="B",
        description="Shortcut where the shape changes: A zero-padded identity, B 1x1 projection (He et al. "
        "2015)",
    )
    width: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Factor for the channels of the stages; in resnet50 to resnet152 for those of the 3x3 "
        "convolutions alone",
    )
    groups: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Groups of a bottleneck's 3x3 convolution; resnet50 with 32 and width 2 is ResNeXt-50 "
        "32x4d",
    )
    squeeze_excitation: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Reduction of a squeeze-and-excitation gate in each block (16 in the paper); 0: no gate",
    )
    preactivation: bool | None = Field(
        default=None,
        description="Batch norm and ReLU before each convolution, not after; null: in wrn16 to wrn40 only",
    )
    zero_init_residual: bool = Field(
        default=True,
        description="Start the last batch-norm scale of each block at 0 (with pre-activation its last "
        "convolution), so that blocks start as identities; not in plain networks, davidnet and those of "
        "other libraries",
    )
    stochastic_depth: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability that the last block is left out for an image in training, with the shortcut "
        "alone in its place; it falls in a line to 0 at the first block",
    )
    blur_pool: bool = Field(
        default=False,
        description="Blur the input of each convolution of the blocks that has a stride (Zhang 2019, as in "
        "ffcv-imagenet)",
    )
    fused_norm: bool = Field(
        default=False,
        description="Batch norm, residual and activation, in speednet94 and 96 the max-pool too, in training "
        "and its evaluations by our own Triton kernels, on a GPU; needs `runtime.channels_last`",
    )
    fused_stem: bool = Field(
        default=False,
        description="The first layers by our own Triton kernels, on a GPU; needs `runtime.channels_last`. A "
        "3x3 convolution: in training and its evaluations, with `fused_norm` norm and ReLU too. A 7x7 "
        "convolution: with `fused_norm` the norm, ReLU and max-pool after it, in training. speednet94 and "
        "speednet96: the whitening with its GELU",
    )
    activation: Literal["gelu", "silu"] = Field(
        default="gelu", description="Activation in the groups of speednet94 and speednet96"
    )
    sync_batchnorm: bool = Field(
        default=False,
        description="Batch norm in training by the statistics of all processes' batches together; else each "
        "process has its own, and the running ones are averaged before evaluating and saving",
    )
    weights: OptionalFilePath = Field(
        default=None,
        description="Weights to start from: a name in pipeline/pretrained/registry.json, a name of "
        "torchvision's weights (IMAGENET1K_V2, also for our resnet18 to 152), `pretrained` for timm/NAME, a "
        "run folder (its newest checkpoint), or a file, "
        ".safetensors or .pth, in our names or torchvision's: a state dict, or a checkpoint with one in it; "
        "the head is kept only if the number of classes is the same; null: random weights",
    )
    reset_head: bool = Field(
        default=False,
        description="Start the head untrained, even if that of `model.weights` has as many classes: they may "
        "be others",
    )

    freeze: Patterns = Field(
        default=(),
        description="Parameters that are not trained, as a list of patterns of their names, such as [stem.*, "
        "stages.0.*]; their batch norms use and keep the running statistics",
    )

    @property
    def has_preactivation(self) -> bool:
        """`preactivation`, resolved for this network."""
        if self.name in PLAIN_NETWORKS:
            return False
        return self.name in _WIDE_NETWORKS if self.preactivation is None else self.preactivation

    def stem_for(self, image_size: int) -> Literal["cifar", "imagenet"]:
        """Return the stem that the network has on images of this height and width."""
        return default_stem(self.name, image_size) if self.stem == "auto" else self.stem
