"""What a trained network looks at: maps for test images, for files, and for any pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.explain import (
    CLASS_AGNOSTIC,
    Explained,
    check_method,
    explain_images,
    find_layer,
    parse_target,
    select_images,
)
from pipeline.inference.trained_model import Trained
from pipeline.models import cam_target_layer

EXPLAINED_IMAGES = 10


class How(TypedDict, total=False):
    """How to explain: the keyword arguments of `explain_pixels`."""

    layer: str | None
    method: str
    target: str | int


def explain_mistakes(trained: Trained, count: int = EXPLAINED_IMAGES, **how: Unpack[How]) -> Explained:
    """Explain the most confident mistakes on the test set and, where there are fewer than COUNT, the least sure of the right ones."""
    resolve(trained, **how)  # a name that is wrong is told before the whole test set is predicted
    chosen = select_images(trained.test_logits(), trained.splits.test.labels, count)
    return explain_samples(trained, chosen.tolist(), **how)


def explain_samples(trained: Trained, indices: Sequence[int], **how: Unpack[How]) -> Explained:
    """Explain test images by their indices.

    Raises:
        UserError: an index that the test set does not have.
    """
    test = trained.splits.test
    wrong = [index for index in indices if not 0 <= index < len(test)]
    if wrong:
        raise UserError(
            f"indices: {', '.join(map(str, wrong[:10]))}: the test set has the indices 0 to {len(test) - 1}"
        )
    chosen = np.array(indices, np.int64)
    sources = [f"test {index}" for index in indices]
    return explain_pixels(trained, test.pixels(chosen), test.labels[chosen], sources, **how)


def explain_files(trained: Trained, files: Sequence[str | Path], **how: Unpack[How]) -> Explained:
    """Explain image files of any size, which are resized and cropped as the run's evaluation images are.

    Raises:
        UserError: names the files that cannot be read.
    """
    paths = [Path(file) for file in files]
    pixels, bad = trained.inputs.read_images(paths, trained.config.data.num_threads)
    if bad:
        raise UserError("\n".join(f"{path}: {reason}" for path, reason in bad))
    return explain_pixels(trained, pixels, None, _short_names(paths), **how)


def explain_pixels(
    trained: Trained,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    sources: Sequence[str] = (),
    *,
    layer: str | None = None,
    method: str = "gradcam",
    target: str | int = "predicted",
) -> Explained:
    """Explain images.

    Args:
        trained: the network.
        images: (N, H, W, 3) uint8, in the size that the network takes.
        labels: (N,) integer, the true classes, where they are known.
        sources: what each image is; default: its number.
        layer: name of the layer to explain; default: that of `cam_target_layer`, the last before pooling.
        method: a key of `METHODS`.
        target: the class to explain: `predicted`, `true`, a class's name, or its index.

    Raises:
        UserError: an unknown layer, method or class.
    """
    class_names = trained.inputs.class_names
    layer, module, target = resolve(trained, layer=layer, method=method, target=target)
    if target == "true" and labels is None:
        raise UserError("class: the true classes are not known; choose predicted, a name or an index")
    normalised = trained.inputs.normalise(images).to(trained.device)
    classes = labels if target == "true" else [target] * len(images) if isinstance(target, int) else None
    found = explain_images(trained.model, normalised, module, method=method, classes=classes)
    names = tuple(sources) or tuple(str(number) for number in range(len(images)))
    return Explained(images, found, labels, names, class_names, layer, method, target)


def resolve(
    trained: Trained, *, layer: str | None = None, method: str = "gradcam", target: str | int = "predicted"
) -> tuple[str, nn.Module, str | int]:
    """The layer's name, the layer itself, and the class as `parse_target` gives it.

    Raises:
        UserError: an unknown layer, method or class, or a class for a method that knows none.
    """
    target = parse_target(target, trained.inputs.class_names)
    if check_method(method) in CLASS_AGNOSTIC and target != "predicted":
        raise UserError(
            f"class: {method} shows the same map for every class; leave the class out, or choose another method"
        )
    size = trained.inputs.image_size
    if layer is not None:
        return (
            layer,
            find_layer(trained.model, torch.zeros(1, 3, size, size, device=trained.device), layer),
            target,
        )
    module = cam_target_layer(trained.model, size)
    return (
        next(name for name, candidate in trained.model.named_modules() if candidate is module),
        module,
        target,
    )


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The files' names, with that of their folder where two of them are called the same, as `cat/0001.jpg` and `dog/0001.jpg`."""
    names = [path.name for path in paths]
    return [
        path.name if names.count(path.name) == 1 else str(Path(path.parent.name, path.name)) for path in paths
    ]
