"""Writes and reads `predictions.npz`: predictions for the test set, so that a report needs no data set."""

import io
import shlex
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from pipeline.atomic_io import write_whole
from pipeline.errors import UserError
from pipeline.inference.calibration import calibrate
from pipeline.run.folder import RunFolder


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for N test images of K classes in the order of the test set, and M images to show.

    Attributes:
        class_names: (K,) text, in label order.
        labels, predicted: (N,) int32, the true and the most probable class.
        confidence: (N,) float32, probability of the predicted class.
        rank: (N,) int32, number of classes that are more probable than the true one; 0 is right.
        shown: (M,) int64, indices in the test set: confident mistakes first, then the right predictions of
            the lowest confidence.
        shown_names: (M,) text, file of each shown image relative to `data.root`; empty if the images have no
            files.
        images: (M, H, W, 3) uint8, as they look.
        maps: (M, H, W) uint8, Grad-CAM map of the predicted class in 255ths; M is 0 where none was
            made.
        calibration: (2,) float64, temperature and expected calibration error with it, as of `Calibration`;
            (0,) in files of older versions.
    """

    class_names: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    rank: np.ndarray
    shown: np.ndarray
    shown_names: np.ndarray
    images: np.ndarray
    maps: np.ndarray
    calibration: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> "Predictions":
        """Make predictions from (N, K) float logits and (N,) integer labels, without images to show.

        >>> Predictions.of(np.log([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), ("cat", "dog")).rank.tolist()
        [0, 1]
        """
        from scipy.special import log_softmax  # a report reads predictions only, and does without this import

        predicted = logits.argmax(axis=1)
        true = np.take_along_axis(logits, labels[:, None], axis=1)
        # of two equal logits, the earlier class is predicted
        calibration = calibrate(logits, labels)
        rank = np.where(predicted == labels, 0, np.maximum((logits > true).sum(axis=1), 1))
        return cls(
            class_names=np.array(class_names, dtype=np.str_),
            labels=labels.astype(np.int32),
            predicted=predicted.astype(np.int32),
            confidence=np.exp(log_softmax(logits.astype(np.float64), axis=1).max(axis=1)).astype(np.float32),
            rank=rank.astype(np.int32),
            shown=np.empty(0, np.int64),
            shown_names=np.empty(0, np.str_),
            images=np.empty((0, 1, 1, 3), np.uint8),
            maps=np.empty((0, 1, 1), np.uint8),
            calibration=np.array([calibration.temperature, calibration.scaled_error]),
        )

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) int64, test images by true class (row) and predicted class (column)."""
        size = len(self.class_names)
        pairs = self.labels.astype(np.int64) * size + self.predicted
        return np.bincount(pairs, minlength=size * size).reshape(size, size)

    def save(self, folder: Path) -> Path:
        """Write `predictions.npz` of a run folder, whole or not at all."""
        path, content = RunFolder(folder).predictions, io.BytesIO()
        np.savez_compressed(content, **{item.name: getattr(self, item.name) for item in fields(self)})
        write_whole(path, content.getvalue())
        return path

    @classmethod
    def load(cls, folder: Path) -> "Predictions | None":
        """Read `predictions.npz` of a run folder; None if there is none.

        Raises:
            UserError: the file is damaged, or of another version.
        """
        path = RunFolder(folder).predictions
        if not path.exists():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                names = [item.name for item in fields(cls) if item.name in file or item.name != "calibration"]
                predictions = cls(**{name: file[name] for name in names})
            predictions._check()
            return predictions
        except Exception as error:  # zip, zlib, numpy and key errors all mean a damaged file
            make_again = shlex.join(["python", "-m", "pipeline", "report", "--refresh", str(folder)])
            raise UserError(f"{path}: cannot be read ({error}); make it again with `{make_again}`") from None

    def _check(self) -> None:
        """Raise a ValueError if the arrays do not belong together."""
        images, classes, shown = len(self.labels), len(self.class_names), len(self.shown)
        fits = (
            {array.shape for array in (self.labels, self.predicted, self.confidence, self.rank)}
            == {(images,)}
            and all(((a >= 0) & (a < classes)).all() for a in (self.labels, self.predicted))
            and ((self.shown >= 0) & (self.shown < images)).all()
            and len(self.shown_names) == len(self.images) == shown
            and len(self.maps) in (0, shown)
            and (self.images.ndim, self.maps.ndim) == (4, 3)
            and self.calibration.shape in ((0,), (2,))
            and (self.images.dtype, self.images.shape[3]) == (np.uint8, 3)
        )
        if not fits:
            raise ValueError("its arrays do not belong together")
