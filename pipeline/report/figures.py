"""Lists the figures of a run: how each is found and written, and whether more or less of it is better."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.inference.calibration import expected_error, reliability
from pipeline.report.run_record import RunRecord
from pipeline.report.series import decimals, percent
from pipeline.run.records import EvalRecord

UNKNOWN = "–"


def _no_remark(_: RunRecord) -> str:
    return ""


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        number: returns its value; None if the run does not have it.
        form: writes a value.
        meaning: a few words.
        better: which of two values is the better one; empty if neither is.
        on_test_set: True if values on different test sets cannot be compared.
        remark: returns a few words that stand below the value of a run.
    """

    name: str
    number: Callable[[RunRecord], float | None]
    form: Callable[[Any], str]
    meaning: str
    better: Literal["more", "less", ""] = ""
    on_test_set: bool = False
    remark: Callable[[RunRecord], str] = _no_remark


def counts_of(evaluation: EvalRecord) -> str:
    """Return the right images among all images."""
    return f"{evaluation.correct:,} of {evaluation.seen:,}"


def duration(seconds: float | None) -> str:
    """Write a time for readers.

    >>> duration(4.21), duration(754), duration(None)
    ('4.2 s', '12 min 34 s', '–')
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _percent(fraction: float) -> str:
    return percent(fraction, 2)


def _of_result(key: str) -> Callable[[RunRecord], float | None]:
    def number(run: RunRecord) -> float | None:
        return getattr(run.result, key, None)  # None too if the run has not finished

    return number


def _test_accuracy(run: RunRecord) -> float | None:
    return None if run.metrics.last_test is None else run.metrics.last_test.accuracy


def _test_counts(run: RunRecord) -> str:
    return "" if run.metrics.last_test is None else counts_of(run.metrics.last_test)


def _best_step(run: RunRecord) -> str:
    result = run.result
    return "" if result is None else f"step {result.best_step:,}, by {result.best_selected_on} accuracy"


def _speed(run: RunRecord) -> float | None:
    return None if run.result is None else run.result.images_per_sec.median or None


def _speed_range(run: RunRecord) -> str:
    if run.result is None:
        return ""
    speed = run.result.images_per_sec
    return f"{speed.p10:,.0f} – {speed.p90:,.0f}, n = {speed.n}"


def _data_reading(run: RunRecord) -> str:
    if run.result is None or run.result.data_first_time is None:
        return ""
    return "for the first time" if run.result.data_first_time else "from the cache"


def _calibration_error(run: RunRecord) -> float | None:
    found = run.predictions
    return None if found is None else expected_error(reliability(found.confidence, found.rank == 0))


def _temperature(run: RunRecord) -> float | None:
    found = run.predictions
    return None if found is None or not len(found.calibration) else float(found.calibration[0])


def other_accuracy(label: str) -> Figure:
    """Return the figure of an accuracy besides that of the raw weights with one view, by its label."""

    def number(run: RunRecord) -> float | None:
        return None if run.result is None else run.result.evaluation.other_accuracies().get(label)

    name = f"test accuracy, {label}" if label.startswith("ema") else f"test accuracy {label}"
    return Figure(name, number, _percent, _MEANINGS.get(label, _MEANING_OF_VIEWS), "more", on_test_set=True)


_MEANINGS = {
    "with flip": "mean of the logits of the image and of its mirror image",
    "ema": "of the moving average of the weights",
    "ema with flip": "of the moving average, with the mirror image",
}
_MEANING_OF_VIEWS = "mean of the logits of several views, as `evaluation.views` describes them"
ACCURACIES = (
    Figure(
        *("test accuracy", _test_accuracy, _percent, "of the last evaluation", "more"),
        on_test_set=True,
        remark=_test_counts,
    ),
    Figure(
        *("best test accuracy", _of_result("best_test_accuracy"), _percent),
        *("at the step that the named set selects", "more"),
        on_test_set=True,
        remark=_best_step,
    ),
)
FIGURES = (
    Figure(
        *("test loss", _of_result("test_loss"), decimals),
        *("cross-entropy, without label smoothing", "less"),
        on_test_set=True,
    ),
    Figure(
        *("calibration error", _calibration_error, _percent),
        *("expected calibration error, 15 bins", "less"),
        on_test_set=True,
    ),
    Figure("temperature", _temperature, "{:.3g}".format, "of the logits; 1 is calibrated, above 1 too sure"),
    Figure("training loss", _of_result("train_loss"), decimals, "mean of the last log window"),
    Figure("parameters", _of_result("num_parameters"), "{:,}".format, "trainable"),
    Figure(
        *("images per second", _speed, "{:,.0f}".format),
        *("median of steady windows (10th – 90th percentile, number of windows)", "more"),
        remark=_speed_range,
    ),
    Figure("time of a step", _of_result("step_ms"), "{:,.2f} ms".format, "median", "less"),
    Figure(
        *("waiting for data", _of_result("data_wait_fraction"), percent),
        *("fraction of a step without a batch", "less"),
    ),
    Figure(
        *("reading the data set", _of_result("data_s"), duration),
        "all of it; most of it goes on while torch is imported",
        remark=_data_reading,
    ),
    Figure("warm-up", _of_result("compile_s"), duration, "compilation, cuDNN trials, graph capture", "less"),
    Figure(
        *("first step done after", _of_result("first_step_s"), duration),
        *("from the start of the command; for a continued run, of the last command", "less"),
    ),
    Figure(
        *("training time", _of_result("train_s"), duration),
        *("all steps, also those before a stop, without evaluation and saving", "less"),
    ),
    Figure(
        *("total time", _of_result("wall_s"), duration),
        *("from the start of the command to the result; for a continued run, of the last command", "less"),
    ),
    Figure(
        *("peak memory", _of_result("peak_memory_bytes"), lambda count: f"{count / 2**30:.2f} GiB"),
        *("of the GPU; on the CPU, of the process", "less"),
    ),
    Figure(
        *("skipped steps", _of_result("skipped_steps"), "{:,}".format),
        "updates left out because fp16 overflowed",
    ),
    Figure(
        *("recompilations", _of_result("recompilations"), "{:,}".format), "after warm-up; should be 0", "less"
    ),
)
