"""Holds the figures of a run as typed records, and writes and reads `result.json`."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pipeline.atomic_io import read_json, write_json
from pipeline.config import FLIP, VIEWS_NAME, label_of
from pipeline.errors import UserError
from pipeline.run.folder import RunFolder

Split = Literal["test", "holdout"]
_ON_DEMAND_FIGURES = ("accuracy_flip_tta", "ema_loss", "ema_accuracy", "ema_accuracy_flip_tta")
# keys that are left out of the files while they are None
_ON_DEMAND = {*_ON_DEMAND_FIGURES, *(f"test_{name}" for name in _ON_DEMAND_FIGURES)}
# `accuracy_mirror_shift_25pct`: the key of an accuracy that its views name
_KEY_OF_VIEWS = re.compile(rf"(.*accuracy)_({VIEWS_NAME})")


def loss_text(loss: float | None, digits: int = 4) -> str:
    """Write a loss for the screen; None is a NaN that was read from a file.

    >>> loss_text(2.30258), loss_text(2.30258, 3), loss_text(1.8132e27), loss_text(None)
    ('2.3026', '2.303', '1.81e+27', 'nan')
    """
    if loss is None:
        return "nan"
    return f"{loss:.2e}" if abs(loss) >= 1e5 else f"{loss:.{digits}f}"


class Record(BaseModel):
    """Base of the records: values never change, and a key of a newer version is passed over."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values: null for NaN and infinity, no key for a figure that was not asked
        for."""
        values = self.model_dump()
        return {
            key: _finite(value) for key, value in values.items() if value is not None or key not in _ON_DEMAND
        }

    @classmethod
    def of(cls, values: Any, source: Path, remedy: str = "give another run, or train it again") -> Self:
        """Check JSON values.

        Args:
            values: as read from a file.
            source: the file, for the message.
            remedy: ends the message.

        Raises:
            UserError: the values are not such a record.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            places = (".".join(map(str, item["loc"])) or "the whole file" for item in error.errors())
            raise UserError(
                f"{source}: not the file of a run of this version (see {', '.join(dict.fromkeys(places))}); "
                f"{remedy}"
            ) from None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TrainRecord(Record):
    """The training steps since the record before.

    Attributes:
        step, epoch: optimizer steps and epochs done.
        loss, accuracy: means over the window; None if every update in it was skipped.
        lr: learning rate of the last step.
        images_per_sec, steps_per_sec: throughput; None while the window holds warm-up steps.
        loss_scale: of fp16; 1 without scaling.
        skipped_steps: updates skipped for overflow since the start of the run.
    """

    kind: Literal["train"] = "train"
    step: int
    epoch: float
    loss: float | None = None
    accuracy: float | None = None
    lr: float
    images_per_sec: float | None = None
    steps_per_sec: float | None = None
    loss_scale: float = 1.0
    skipped_steps: int = 0


class _WithViews(Record):
    """Base of the records with accuracies from several test-time views.

    In the files each of them has a key of its own, such as `accuracy_mirror_shift_25pct`; the field
    `accuracy_views` holds them by the rest of the key.
    """

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        gathered: dict[Any, Any] = {}
        for key, value in values.items():
            match = _KEY_OF_VIEWS.fullmatch(key) if isinstance(key, str) else None
            if match is None:
                gathered[key] = value
            else:
                gathered.setdefault(f"{match[1]}_views", {})[match[2]] = value
        return gathered

    def to_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in super().to_json().items():
            start = key.removesuffix("views")
            by_name = {key: value} if start == key else {f"{start}{name}": of for name, of in value.items()}
            values |= by_name
        return values


class EvalFigures(_WithViews):
    """The figures of one evaluation. Accuracies are fractions of 1.

    Attributes:
        loss: mean cross-entropy, without label smoothing, of one view per image.
        accuracy, correct, seen: of the raw weights with one view per image.
        accuracy_flip_tta: of the mean logits of an image and its mirror image; None if not asked for.
        accuracy_views: by `Views.name`, from other test-time views; empty if none are asked for.
        ema_loss, ema_accuracy, ema_accuracy_flip_tta, ema_accuracy_views: the same of the averaged weights;
            None, or empty, if there are none.
    """

    loss: float | None = None
    accuracy: float
    correct: int
    seen: int
    accuracy_flip_tta: float | None = None
    accuracy_views: Mapping[str, float] = {}
    ema_loss: float | None = None
    ema_accuracy: float | None = None
    ema_accuracy_flip_tta: float | None = None
    ema_accuracy_views: Mapping[str, float] = {}

    def other_accuracies(self) -> dict[str, float]:
        """Return the accuracies besides that of the raw weights with one view, by label, wherever they are
        printed: `with flip`, `ema`, `ema with mirror and shift (least sure 25%)`."""
        of_weights: dict[str, float | None] = {FLIP: self.accuracy_flip_tta, **self.accuracy_views}
        of_average = {FLIP: self.ema_accuracy_flip_tta, **self.ema_accuracy_views}
        values = {
            **{label_of(name): value for name, value in of_weights.items()},
            "ema": self.ema_accuracy,
            **{f"ema {label_of(name)}": value for name, value in of_average.items()},
        }
        return {label: value for label, value in values.items() if value is not None}


class EvalRecord(EvalFigures):
    """One evaluation of a run on the `test` or the `holdout` split."""

    kind: Literal["eval"] = "eval"
    split: Split
    step: int
    epoch: float

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        first = {key: values[key] for key in ("kind", "split", "step", "epoch")}
        return first | values


class BestEvaluation(Record):
    """The best evaluation so far, of the raw weights.

    Attributes:
        accuracy: on the split `selected_on`.
        test_accuracy: on the test set at the same step; None until that is known.
    """

    accuracy: float
    step: int
    selected_on: Split
    test_accuracy: float | None = None


class Throughput(Record):
    """Images per second over the steady windows: median, 10th and 90th percentile, number of windows."""

    median: float | None
    p10: float | None
    p90: float | None
    n: int


class RunResult(_WithViews):
    """The contents of result.json. Accuracies are fractions of 1, of the raw weights with one view unless the
    name says otherwise.

    Attributes:
        test_loss … test_ema_accuracy_views: as in `EvalFigures`, on the test set at the last step.
        best_test_accuracy, best_step, best_selected_on: the best evaluation.
        train_loss: of the last window.
        images_per_sec, step_ms, data_wait_fraction: over the steady windows.
        first_step_s: from the command to the end of the first step, in seconds.
        compile_s: warm-up: compiling, choosing algorithms, capturing.
        train_s: all training steps, warm-up included.
        wall_s: from the command to this record.
        timeline: seconds of the parts of the run, from the command to the end of the process, in their order;
            `exit`, which no process can time itself, is added by launch.sh. Empty for a run of an older
            version.
        data_s: of all the reading of the data set, most of it beside the imports.
        data_first_time: True if files were downloaded, decoded or indexed for it; False if a cache held
            all of it; None if it needs no such work.
        peak_memory_bytes: on a GPU of torch's allocator, on the CPU of the process.
        skipped_steps: updates skipped for overflow.
        recompilations: graphs compiled after warm-up.
    """

    test_loss: float | None = None
    test_accuracy: float
    test_correct: int
    test_seen: int
    test_accuracy_flip_tta: float | None = None
    test_accuracy_views: Mapping[str, float] = {}
    test_ema_loss: float | None = None
    test_ema_accuracy: float | None = None
    test_ema_accuracy_flip_tta: float | None = None
    test_ema_accuracy_views: Mapping[str, float] = {}
    best_test_accuracy: float | None = None
    best_step: int
    best_selected_on: Split
    train_loss: float | None = None
    num_parameters: int
    steps: int
    epochs: float
    images_per_sec: Throughput
    step_ms: float | None = None
    data_wait_fraction: float | None = None
    first_step_s: float | None = None
    compile_s: float
    train_s: float
    wall_s: float
    timeline: Mapping[str, float | None] = {}
    data_s: float | None = None
    data_first_time: bool | None = None
    peak_memory_bytes: int
    skipped_steps: int = 0
    recompilations: int = 0
    loader: str
    device: str
    world_size: int
    precision: str
    batch_size: int
    seed: int

    @property
    def evaluation(self) -> EvalFigures:
        """The figures of the last evaluation on the test set."""
        return EvalFigures(**{name: getattr(self, f"test_{name}") for name in EvalFigures.model_fields})

    def write(self, run: RunFolder) -> None:
        """Write result.json; the run is finished then."""
        write_json(run.result, self.to_json())

    @classmethod
    def read(cls, path: Path) -> "RunResult":
        """Read a result.json.

        Raises:
            UserError: the file is missing, is not JSON, or is not the result of a run.
        """
        return cls.of(read_json(path), path)
