"""Prepares the images of the page: each with its saliency map, true and predicted class."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.inference.predictions import Predictions
from pipeline.plotting import style
from pipeline.report.classes import data_url

_SIDE_PX = 160  # longer side of a drawn map, and of an image that is larger than its frame
_SMALL_PX = 64  # images up to this size are kept pixel by pixel and enlarged by the browser


@dataclass(frozen=True)
class Shown:
    """One test image. `picture` and `saliency` are data URLs; `saliency` is empty if no map was made."""

    where: str
    true: str
    predicted: str
    confidence: str
    right: bool
    picture: str
    saliency: str
    small: bool


def gallery(predictions: Predictions) -> list[Shown]:
    """Return the shown images in their order."""
    names = [style.one_line(name) for name in predictions.class_names.tolist()]
    items = []
    for i, sample in enumerate(predictions.shown.tolist()):
        image = predictions.images[i]
        true, predicted = predictions.labels[sample], predictions.predicted[sample]
        file = style.one_line(str(predictions.shown_names[i]))
        saliency = ""
        if i < len(predictions.maps):
            drawn = style.overlay(image, predictions.maps[i].astype(np.float32) / 255, _SIDE_PX)
            saliency = data_url(Image.fromarray(drawn), "WEBP", quality=82, method=4)
        small = max(image.shape[:2]) <= _SMALL_PX
        items.append(
            Shown(
                where=file or f"test image {sample}",
                true=names[true],
                predicted=names[predicted],
                confidence=style.percent(float(predictions.confidence[sample])),
                right=bool(true == predicted),
                picture=_encode(image, small),
                saliency=saliency,
                small=small,
            )
        )
    return items


def _encode(image: np.ndarray, small: bool) -> str:
    picture = Image.fromarray(image)
    if small:
        return data_url(picture, "PNG", optimize=True)
    picture.thumbnail((2 * _SIDE_PX, 2 * _SIDE_PX))
    return data_url(picture, "WEBP", quality=82, method=4)
