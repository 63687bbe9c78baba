"""Predicts the most probable classes of image files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from pipeline.data.files.image_formats import FORMAT_NAMES, SUFFIXES
from pipeline.errors import Stopped, UserError
from pipeline.inference.trained_model import Trained
from pipeline.process.interrupt import keep_results
from pipeline.run.progress import shown

_CHUNK = 1024  # images in memory at once


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        file: the image.
        classes: indices of the most probable classes, the most probable first.
        probabilities: of these classes, from the softmax over all classes.
    """

    file: Path
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


def predict_files(
    trained: Trained, files: Sequence[str | Path], top: int = 5
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Predict the classes of image files of any size in float32.

    The images are resized and cropped as the run's evaluation images are.

    Args:
        trained: the network.
        files: files, and folders whose image files are read, hidden ones excepted.
        top: number of classes for each image; at most all of them.

    Returns:
        The predictions, and the files that cannot be read with their reasons; both in the order of the files.

    Raises:
        UserError: `top` is less than 1.
        Stopped: Ctrl-C; its `partial` is what would be returned, of the files so far.
    """
    if top < 1:
        raise UserError(f"top: {top} classes for each image; give 1 or more")
    predictions: list[Prediction] = []
    bad: list[tuple[Path, str]] = []
    chunks = list(_chunks(_expand(files, bad)))
    try:
        for chunk in shown(chunks, "images"):
            found, unread = _predict_chunk(trained, chunk, top)
            predictions += found
            bad += unread
            keep_results()
    except KeyboardInterrupt:
        raise Stopped((predictions, bad)) from None
    return predictions, bad


def _predict_chunk(
    trained: Trained, chunk: list[Path], top: int
) -> tuple[list[Prediction], list[tuple[Path, str]]]:
    """Predict the classes of some files; return also the files that cannot be read with their reasons."""
    pixels, unread = trained.inputs.read_images(chunk, trained.config.data.num_threads)
    unreadable = {path for path, _ in unread}
    rows = [row for row, path in enumerate(chunk) if path not in unreadable]
    files = [chunk[row] for row in rows]
    return (_rank(files, trained.logits(pixels[rows]), top) if rows else []), unread


def _rank(files: list[Path], logits: np.ndarray, top: int) -> list[Prediction]:
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    shares = np.exp(np.take_along_axis(log_softmax(logits.astype(np.float64), axis=1), order, axis=1))
    rows = zip(files, order.tolist(), shares.tolist(), strict=True)
    return [Prediction(file, tuple(classes), tuple(probabilities)) for file, classes, probabilities in rows]


def _expand(files: Sequence[str | Path], bad: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield each file once; for a folder its images, in the order of their paths."""

    def report(error: OSError) -> None:
        bad.append((Path(error.filename), error.strerror or str(error)))

    for path in dict.fromkeys(map(Path, files)):
        if not path.is_dir():
            yield path
            continue
        count = 0
        for folder, subfolders, names in os.walk(path, onerror=report):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    count += 1
                    yield Path(folder, name)
        if not count:
            bad.append((path, f"no {FORMAT_NAMES} file in this folder"))


def _chunks(files: Iterator[Path]) -> Iterator[list[Path]]:
    chunk: list[Path] = []
    for file in files:
        chunk.append(file)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
