"""Builds networks of torchvision and timm by name.

Only `build_pretrained_timm` downloads; the others have random weights.
"""

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pipeline.config.model import library_of
from pipeline.errors import UserError
from pipeline.models.flops import on_meta


def build_library_network(
    name: str,
    num_classes: int,
    in_channels: int,
    image_size: int,
    other_sizes: Mapping[int, str] | None = None,
) -> nn.Module:
    """Build `torchvision/NAME` or `timm/NAME`, initialised by the library.

    Args:
        name: of a network that classifies images.
        num_classes: outputs.
        in_channels: channels of the images. If there are not 3, torchvision's first convolution is replaced.
        image_size: height and width of the images in pixels. Some networks are built for one size.
        other_sizes: other heights and widths of images in the run, in pixels, each with the key that sets it.

    Raises:
        UserError: the library is not installed or has no such network, or the network does not accept images
            of one of the sizes.
    """
    build = _build_torchvision if library_of(name) == "torchvision" else _build_timm
    with _refused_images(name, image_size, in_channels, "data.image_size"):
        model = build(name.partition("/")[2], num_classes, in_channels, image_size)
    copy = on_meta(model).eval()
    for size, key in {image_size: "data.image_size", **(other_sizes or {})}.items():
        logits = None
        # NotImplementedError: the meta device does not have the operator
        with _refused_images(name, size, in_channels, key), contextlib.suppress(NotImplementedError):
            logits = copy(torch.empty(2, in_channels, size, size, device="meta"))
        if logits is not None and (not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes)):
            raise UserError(
                f"model.name: {name} does not return logits for {num_classes} classes; "
                "choose a network that classifies images"
            )
    return model


@contextlib.contextmanager
def _refused_images(name: str, size: int, in_channels: int, key: str) -> Iterator[None]:
    """Turn the errors of a network that does not accept the images into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"model.name: {name} does not take images of {size}x{size} pixels with {in_channels} channels "
            f"({reason}); choose another network, or another {key}"
        ) from None


def _build_torchvision(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if name in ("googlenet", "inception_v3"):
        arguments.update(aux_logits=False, init_weights=True)
    if name.startswith("vit_"):
        arguments.update(image_size=image_size)
    model = models.get_model(name, **arguments)
    if in_channels != 3:
        _replace_first_convolution(model, in_channels)
    return model


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for another number of channels."""
    path, stem = next(
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    same_keys = ("kernel_size", "stride", "padding", "dilation", "groups")
    options: dict[str, Any] = {key: getattr(stem, key) for key in same_keys}
    convolution = nn.Conv2d(in_channels, stem.out_channels, bias=stem.bias is not None, **options)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, convolution)


def _import_timm(name: str) -> Any:
    """Import timm, for a network that has this name there.

    Raises:
        UserError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UserError(
            f"model.name: timm/{name} needs the package timm, which is not installed; "
            "pip install -e '.[timm]'"
        ) from None
    return timm


def known_to_timm(name: str) -> bool:
    """Return True if timm publishes weights for a network that it has."""
    timm = _import_timm(name)

    if not timm.is_model(name) or _has_unknown_tag(timm, name):
        return False
    cfg = timm.get_pretrained_cfg(name)
    return cfg is not None and bool(cfg.has_weights)


def _has_unknown_tag(timm: Any, name: str) -> bool:
    """Return True for a network with the name of published weights that do not exist."""
    return "." in name and name not in timm.list_pretrained()


def pretrained_names_near(name: str) -> list[str]:
    """Return names of networks that timm publishes weights for: those that are most like NAME."""
    timm = _import_timm(name)

    return difflib.get_close_matches(name, timm.list_pretrained(), n=3)


def repository_of_timms(name: str) -> tuple[str, str | None] | None:
    """Return the repository of the Hugging Face Hub that timm takes weights from, and the name of their file,
    None for the usual one; None if it takes them from elsewhere."""
    cfg = _import_timm(name).get_pretrained_cfg(name)
    return None if cfg.file or cfg.state_dict or not cfg.hf_hub_id else (cfg.hf_hub_id, cfg.hf_hub_filename)


def build_pretrained_timm(name: str, image_size: int) -> nn.Module:
    """Build a network of timm with the weights and the classes that it is published with: RGB images.

    Raises:
        Exception: of any type, if the weights cannot be downloaded.
    """
    timm = _import_timm(name)

    timm.models.set_pretrained_check_hash(True)
    create: Callable[..., nn.Module] = timm.create_model
    return create(name, pretrained=True, **_timms_size(name, image_size))


def _timms_size(name: str, image_size: int) -> dict[str, int]:
    """Return the argument of a network that is built for one size of images."""
    timm = _import_timm(name)

    cfg = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if cfg is not None and cfg.fixed_input_size else {}


def _build_timm(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    timm = _import_timm(name)
    create: Callable[..., nn.Module] = timm.create_model
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    if _has_unknown_tag(timm, name):
        raise _unknown("timm", name, timm.list_pretrained())
    size = _timms_size(name, image_size)
    return create(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **size)


def _unknown(library: str, name: str, known: Iterable[str]) -> UserError:
    near = difflib.get_close_matches(name, list(known), n=3)
    module = {"torchvision": "torchvision.models"}.get(library, library)
    hint = f"{module}.list_models() lists them"
    if near:
        hint = f"did you mean {' or '.join(f'{library}/{item}' for item in near)}?"
    return UserError(f"model.name: {library} has no network {name!r} that classifies images; {hint}")
