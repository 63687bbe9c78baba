"""Explains a trained network: saliency maps for test images, for files, and for any pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import nn

from pipeline.argument_types import check_type
from pipeline.data.datasets.image_set import check_pixels, describe_array
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
from pipeline.training.own_parts import try_network

EXPLAINED_IMAGES = 10


class ExplainKeywords(TypedDict, total=False):
    """The fields of `ExplainOptions` as keyword arguments."""

    layer: str | None
    method: str
    target: str | int


@dataclass(frozen=True)
class ExplainOptions:
    """What to explain, and by which method.

    Attributes:
        layer: name of the layer to explain; default: that of `cam_target_layer`, the last before pooling.
        method: a key of `METHODS`.
        target: the class to explain: `predicted`, `true`, a class's name, or its index.
    """

    layer: str | None = None
    method: str = "gradcam"
    target: str | int = "predicted"

    def __post_init__(self) -> None:
        for name, hint in ExplainKeywords.__annotations__.items():
            check_type(name, getattr(self, name), hint)

    def resolve(self, trained: Trained) -> tuple[str, nn.Module, str | int]:
        """Return the layer's name, the layer, and the class as `parse_target` returns it.

        Raises:
            UserError: an unknown layer, method or class, or a class for a method that shows none.
        """
        target = parse_target(self.target, trained.inputs.class_names)
        if check_method(self.method) in CLASS_AGNOSTIC and target != "predicted":
            raise UserError(
                f"class: {self.method} shows the same map for every class; leave the class out, "
                "or choose another method"
            )
        size = trained.inputs.image_size
        if self.layer is not None:
            image = torch.zeros(1, 3, size, size, device=trained.device)
            return self.layer, find_layer(trained.model, image, self.layer), target
        module = cam_target_layer(trained.model, size)
        name = next(name for name, candidate in trained.model.named_modules() if candidate is module)
        return name, module, target


DEFAULT = ExplainOptions()


def explain_mistakes(
    trained: Trained,
    count: int = EXPLAINED_IMAGES,
    options: ExplainOptions = DEFAULT,
    **keywords: Unpack[ExplainKeywords],
) -> Explained:
    """Explain the most confident mistakes on the test set.

    Where there are fewer than COUNT, right predictions with the lowest confidence follow.

    Raises:
        UserError: names the argument that is wrong.
    """
    return predict_and_explain(trained, count, replace(options, **keywords))[0]


def predict_and_explain(trained: Trained, count: int, options: ExplainOptions) -> tuple[Explained, float]:
    """Explain as `explain_mistakes`, and return the accuracy on the test set as well."""
    options.resolve(trained)  # reports a wrong name before the whole test set is predicted
    logits, labels = trained.test_logits(), trained.test.labels
    selected = select_images(logits, labels, count)
    accuracy = float((logits.argmax(1) == labels).mean())
    return explain_samples(trained, selected.tolist(), options), accuracy


def explain_samples(
    trained: Trained,
    indices: Sequence[int],
    options: ExplainOptions = DEFAULT,
    **keywords: Unpack[ExplainKeywords],
) -> Explained:
    """Explain test images by their indices.

    Raises:
        UserError: an index that the test set does not have; or names the argument that is wrong.
    """
    test, indices = trained.test, list(indices)
    check_type("indices", indices, Sequence[int])
    wrong = [index for index in indices if not 0 <= index < len(test)]
    if wrong:
        listed = ", ".join(map(str, wrong[:10]))
        raise UserError(f"indices: {listed}: the test set has the indices 0 to {len(test) - 1}")
    selected = np.array(indices, np.int64)
    pixels, labels = test.pixels(selected), test.labels[selected]
    sources = [f"test {index}" for index in indices]
    return explain_pixels(trained, pixels, labels, sources, options, **keywords)


def explain_files(
    trained: Trained,
    files: Sequence[str | Path],
    options: ExplainOptions = DEFAULT,
    **keywords: Unpack[ExplainKeywords],
) -> Explained:
    """Explain image files of any size. They are resized and cropped as the run's evaluation images are.

    Raises:
        UserError: names the files that cannot be read, or the argument that is wrong.
    """
    paths = [Path(file) for file in files]
    pixels, bad = trained.inputs.read_images(paths, trained.config.data.num_threads)
    if bad:
        raise UserError("\n".join(f"{path}: {reason}" for path, reason in bad))
    return explain_pixels(trained, pixels, None, _short_names(paths), options, **keywords)


def explain_pixels(
    trained: Trained,
    images: np.ndarray,
    labels: np.ndarray | None = None,
    sources: Sequence[str] = (),
    options: ExplainOptions = DEFAULT,
    **keywords: Unpack[ExplainKeywords],
) -> Explained:
    """Explain images.

    Args:
        trained: the network.
        images: (N, H, W, 3) uint8, in the size that the network takes.
        labels: (N,) integer, the true classes, where they are known.
        sources: names of the images; default: their numbers.
        options: layer, method and class.
        keywords: single fields of the options.

    Raises:
        UserError: an unknown layer, method or class; or names the argument that is wrong.
    """
    options = replace(options, **keywords)
    check_pixels(images := np.asarray(images))
    if not len(images):
        raise UserError("images: there are none; give one or more")
    normalised = trained.inputs.normalise(images).to(trained.device)
    class_names = trained.inputs.class_names
    labels = None if labels is None else _check_labels(labels, len(images), class_names)
    names = tuple(map(str, sources)) or tuple(map(str, range(len(images))))
    if len(names) != len(images):
        raise UserError(f"sources: {len(names)} names for {len(images)} images; give one for each, or none")
    layer, module, target = options.resolve(trained)
    if target == "true" and labels is None:
        raise UserError("class: the true classes are not known; choose predicted, a name or an index")
    classes = labels if target == "true" else [target] * len(images) if isinstance(target, int) else None
    try_network(trained.model, normalised)  # of images that it does not take, the library's error says little
    found = explain_images(trained.model, normalised, module, method=options.method, classes=classes)
    return Explained(images, found, labels, names, class_names, layer, options.method, target)


def _check_labels(labels: np.ndarray, num_images: int, class_names: Sequence[str]) -> np.ndarray:
    """Return labels, (N,) integer, as an array.

    Raises:
        UserError: they are not one index of a class for each image.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (num_images,):
        raise UserError(
            f"labels: {describe_array(array)} for {num_images} images; give ({num_images},) integer, the "
            "index of each image's class"
        )
    wrong = array[(array < 0) | (array >= len(class_names))]
    if len(wrong):
        raise UserError(f"labels: {wrong[0]} is none of the classes 0 to {len(class_names) - 1}")
    return array


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the files' names, with the folder for files of one name: `cat/0001.jpg`, `dog/0001.jpg`."""
    names = [path.name for path in paths]
    return [
        path.name if names.count(path.name) == 1 else str(Path(path.parent.name, path.name)) for path in paths
    ]
