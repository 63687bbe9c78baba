"""The most probable classes of image files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from pipeline.data.files.listing import SUFFIXES
from pipeline.inference.trained_model import Trained

_CHUNK = 1024  # images in memory at once


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        file: the image.
        classes: indices of the most probable classes, the most probable first.
        probabilities: theirs, from the softmax over all classes.
    """

    file: Path
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


def predict_files(
    trained: Trained, files: Sequence[str | Path], top: int = 5
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Predict the classes of image files of any size, resized and cropped as the run's evaluation images are,
    in float32.

    Args:
        trained: the network.
        files: files, and folders in which all JPEG and PNG files are taken, hidden ones excepted.
        top: how many classes of each; at most all of them.

    Returns:
        The predictions, and the files that cannot be read with the reason; both in the order of the files.
    """
    predictions: list[Prediction] = []
    bad: list[tuple[Path, str]] = []
    for chunk in _chunks(_expand(files, bad)):
        pixels, unread = trained.inputs.read_images(chunk, trained.config.data.num_threads)
        bad += unread
        unreadable = {path for path, _ in unread}
        kept = [row for row, path in enumerate(chunk) if path not in unreadable]
        if kept:
            predictions += _rank([chunk[row] for row in kept], trained.logits(pixels[kept]), top)
    return predictions, bad


def _rank(files: list[Path], logits: np.ndarray, top: int) -> list[Prediction]:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    found = np.exp(np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), order, axis=1))
    return [
        Prediction(file, tuple(row), tuple(share))
        for file, row, share in zip(files, order.tolist(), found.tolist(), strict=True)
    ]


def _expand(files: Sequence[str | Path], bad: list[tuple[Path, str]]) -> Iterator[Path]:
    """Each file once; for a folder its images, in the order of their paths."""
    for given in dict.fromkeys(map(Path, files)):
        if not given.is_dir():
            yield given
            continue
        found = 0
        for folder, below, names in os.walk(
            given, onerror=lambda error: bad.append((Path(error.filename), error.strerror or str(error)))
        ):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    found += 1
                    yield Path(folder, name)
        if not found:
            bad.append((given, "no .jpg, .jpeg or .png file in this folder"))


def _chunks(files: Iterator[Path]) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
