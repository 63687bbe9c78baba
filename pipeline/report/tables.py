"""Makes the rows of the page's tables, with a column for each run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import flatten, leaf_fields
from pipeline.report.run_record import RunRecord
from pipeline.report.series import number, percent
from pipeline.run.records import EvalRecord

_UNKNOWN = "–"
_NOT_IN_ENVIRONMENT = ("command", "continued")


@dataclass(frozen=True)
class Row:
    """One row of a table with a column for each run.

    Attributes:
        values: text, one for each run.
        default: text of the default; empty if there is none.
        changed: for each run, True if its value is not the default.
        differs: True if the runs differ.
    """

    name: str
    values: list[str]
    meaning: str = ""
    default: str = ""
    changed: tuple[bool, ...] = ()
    differs: bool = False


_Get = Callable[[RunRecord], str]


def figures(runs: Sequence[RunRecord]) -> list[Row]:
    """Return the results of the runs; figures that no run has are left out."""
    first, others = _rows(_ACCURACIES, runs), _rows(_FIGURES, runs)
    rows = [*first, *_other_accuracies(runs), *others]
    return [row for row in rows if set(row.values) != {_UNKNOWN}]


def _rows(figures: Sequence[tuple[str, _Get, str]], runs: Sequence[RunRecord]) -> list[Row]:
    return [Row(name, [get(run) for run in runs], meaning) for name, get, meaning in figures]


def _other_accuracies(runs: Sequence[RunRecord]) -> list[Row]:
    """Return a row for each accuracy besides that of the raw weights with one view, named after its views."""
    found = [{} if run.result is None else run.result.evaluation.other_accuracies() for run in runs]
    rows = []
    for label in dict.fromkeys(label for values in found for label in values):
        name = f"test accuracy, {label}" if label.startswith("ema") else f"test accuracy {label}"
        texts = [percent(values[label], 2) if label in values else _UNKNOWN for values in found]
        rows.append(Row(name, texts, _MEANINGS.get(label, _MEANING_OF_VIEWS)))
    return rows


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return (name, value, remark) of the figures at the top of the page."""
    result, test, rows = run.result, run.metrics.last_test, []
    if test is not None:
        rows.append(("test accuracy", percent(test.accuracy, 2), counts_of(test)))
    if result is None:
        return rows
    speed = result.images_per_sec
    if result.best_test_accuracy is not None:
        remark = f"step {result.best_step:,}, by {result.best_selected_on} accuracy"
        rows.append(("best", percent(result.best_test_accuracy, 2), remark))
    if speed.median:
        rows.append(("images per second", f"{speed.median:,.0f}", f"{speed.p10:,.0f} – {speed.p90:,.0f}"))
    since = "since it was continued" if run.environment.get("continued") else "total"
    rows.append(("training time", duration(result.train_s), f"{duration(result.wall_s)} {since}"))
    count = result.num_parameters
    short = f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
    rows.append(("parameters", short, f"{count:,}"))
    return rows


def config_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Return the keys that a run has, those that this version does not have included."""
    fields = dict(leaf_fields())
    rows = []
    there = dict.fromkeys(key for run in runs for key in run.values)
    for key in [*(key for key in fields if key in there), *(key for key in there if key not in fields)]:
        values = [_text(run.values[key]) if key in run.values else _UNKNOWN for run in runs]
        default, meaning = "", "unknown key in this version"
        if key in fields:
            default, meaning = _text(fields[key].get_default()), fields[key].description or ""
        changed = tuple(value not in (default, _UNKNOWN) for value in values)
        rows.append(Row(key, values, meaning, default, changed, len(set(values)) > 1))
    return rows


def environment_rows(runs: Sequence[RunRecord]) -> list[Row]:
    """Return hardware, versions and switches; what no run has is left out."""
    flat = [
        flatten({key: value for key, value in run.environment.items() if key not in _NOT_IN_ENVIRONMENT})
        for run in runs
    ]
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [_text(values[key]) if key in values else _UNKNOWN for values in flat]
        if set(values) <= {_UNKNOWN, "null"}:
            continue
        name = key.removeprefix("packages.").replace("_", " ").replace("gpu.", "GPU ")
        if name.endswith(" bytes"):
            name = name.removesuffix(" bytes")
            values = [_gibibytes(int(text)) if text.isdigit() else text for text in values]
        rows.append(Row(name, values, differs=len(set(values)) > 1))
    return rows


def evaluations(run: RunRecord) -> list[dict[str, str]]:
    """Return all evaluations of a run, a row each."""
    rows = []
    for split, records in run.metrics.evals.items():
        for record in records:
            rows.append(
                {
                    "set": split,
                    "epoch": number(record.epoch),
                    "step": f"{record.step:,}",
                    "loss": _UNKNOWN if record.loss is None else f"{record.loss:.4f}",
                    "accuracy": percent(record.accuracy, 2),
                    "right": f"{record.correct}/{record.seen}",
                }
            )
    return rows


def counts_of(evaluation: EvalRecord) -> str:
    """Return the right images among all images."""
    return f"{evaluation.correct:,} of {evaluation.seen:,}"


def duration(seconds: float | None) -> str:
    """Write a time for readers.

    >>> duration(4.21), duration(754), duration(None)
    ('4.2 s', '12 min 34 s', '–')
    """
    if seconds is None:
        return _UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    # all digits of a float: if it were rounded, a changed value could look like the default
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _result(key: str, form: Callable[[Any], str]) -> _Get:
    def get(run: RunRecord) -> str:
        value = getattr(run.result, key, None)  # None too if the run has not finished
        return _UNKNOWN if value is None else form(value)

    return get


def _speed(run: RunRecord) -> str:
    if run.result is None or not (speed := run.result.images_per_sec).median:
        return _UNKNOWN
    return f"{speed.median:,.0f} ({speed.p10:,.0f} – {speed.p90:,.0f}, n = {speed.n})"


def _test_accuracy(run: RunRecord) -> str:
    record = run.metrics.last_test
    return _UNKNOWN if record is None else f"{percent(record.accuracy, 2)} ({counts_of(record)})"


def _best(run: RunRecord) -> str:
    result = run.result
    if result is None or result.best_test_accuracy is None:
        return _UNKNOWN
    place = f"step {result.best_step:,}, by {result.best_selected_on} accuracy"
    return f"{percent(result.best_test_accuracy, 2)} ({place})"


_MEANINGS = {
    "with flip": "mean of the logits of the image and of its mirror image",
    "ema": "of the moving average of the weights",
    "ema with flip": "of the moving average, with the mirror image",
}
_MEANING_OF_VIEWS = "mean of the logits of several views, as `evaluation.views` describes them"
_ACCURACIES: tuple[tuple[str, _Get, str], ...] = (
    ("test accuracy", _test_accuracy, "of the last evaluation"),
    ("best test accuracy", _best, "at the step that the named set selects"),
)
_FIGURES: tuple[tuple[str, _Get, str], ...] = (
    ("test loss", _result("test_loss", "{:.4f}".format), "cross-entropy, without label smoothing"),
    ("training loss", _result("train_loss", "{:.4f}".format), "mean of the last log window"),
    ("parameters", _result("num_parameters", "{:,}".format), "trainable"),
    ("images per second", _speed, "median of steady windows (10th – 90th percentile, number of windows)"),
    ("time of a step", _result("step_ms", "{:,.2f} ms".format), "median"),
    ("waiting for data", _result("data_wait_fraction", percent), "fraction of a step without a batch"),
    ("warm-up", _result("compile_s", duration), "compilation, cuDNN trials, graph capture"),
    (
        "first step done after",
        _result("first_step_s", duration),
        "from the start of the command; for a continued run, of the last command",
    ),
    (
        "training time",
        _result("train_s", duration),
        "all steps, also those before a stop, without evaluation and saving",
    ),
    (
        "total time",
        _result("wall_s", duration),
        "from the start of the command to the result; for a continued run, of the last command",
    ),
    (
        "peak memory",
        _result("peak_memory_bytes", lambda count: f"{count / 2**30:.2f} GiB"),
        "of the GPU; on the CPU, of the process",
    ),
    ("skipped steps", _result("skipped_steps", "{:,}".format), "updates left out because fp16 overflowed"),
    ("recompilations", _result("recompilations", "{:,}".format), "after warm-up; should be 0"),
)
