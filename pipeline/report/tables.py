"""The tables and figures of the page, with a column for each run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import leaf_fields
from pipeline.report.curves import number, percent
from pipeline.report.run_record import RunRecord, flatten

_UNKNOWN = "–"
_NOT_IN_ENVIRONMENT = ("command", "continued")


@dataclass(frozen=True)
class Row:
    """One row of a table with a column for each run.

    Attributes:
        values: text, one a run.
        default: text of the default; empty where there is none.
        changed: of each run, whether the value is another than the default.
        differs: whether the runs differ.
    """

    name: str
    values: list[str]
    meaning: str = ""
    default: str = ""
    changed: tuple[bool, ...] = ()
    differs: bool = False


def duration(seconds: float | None) -> str:
    """
    >>> duration(4.21), duration(754), duration(None)
    ('4.2 s', '12 min 34 s', '–')
    """
    if seconds is None:
        return _UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


Get = Callable[[RunRecord], str]


def _result(key: str, form: Callable[[Any], str]) -> Get:
    def get(run: RunRecord) -> str:
        value = run.result.get(key)
        return _UNKNOWN if value is None else form(value)

    return get


def _speed(run: RunRecord) -> str:
    speed = run.result.get("images_per_sec") or {}
    return (
        f"{speed['median']:,.0f} ({speed['p10']:,.0f} – {speed['p90']:,.0f}, n = {speed['n']})"
        if speed.get("median")
        else _UNKNOWN
    )


def _test_accuracy(run: RunRecord) -> str:
    record = run.evals["test"][-1] if run.evals["test"] else {}
    if record.get("accuracy") is None:
        return _UNKNOWN
    counts = (
        f" ({record['correct']:,} of {record['seen']:,})" if "correct" in record and "seen" in record else ""
    )
    return percent(record["accuracy"], 2) + counts


def _best(run: RunRecord) -> str:
    best = run.result.get("best_test_accuracy")
    return (
        _UNKNOWN
        if best is None
        else f"{percent(best, 2)} (step {run.result['best_step']:,}, by the {run.result['best_selected_on']} set)"
    )


def _exact(share: float) -> str:
    return percent(share, 2)


_FIGURES: tuple[tuple[str, Get, str], ...] = (
    ("test accuracy", _test_accuracy, "of the last evaluation"),
    ("best test accuracy", _best, "at the step that the named set selects"),
    (
        "test accuracy with flip",
        _result("test_accuracy_flip_tta", _exact),
        "mean of the image's logits and its mirror image's",
    ),
    ("test accuracy, ema", _result("test_ema_accuracy", _exact), "of the moving average of the weights"),
    (
        "test accuracy, ema with flip",
        _result("test_ema_accuracy_flip_tta", _exact),
        "of the moving average, with the mirror image",
    ),
    ("test loss", _result("test_loss", "{:.4f}".format), "cross-entropy, without label smoothing"),
    ("training loss", _result("train_loss", "{:.4f}".format), "mean of the last log window"),
    ("parameters", _result("num_parameters", "{:,}".format), "trainable"),
    ("images per second", _speed, "median of steady windows (10th – 90th percentile, number of windows)"),
    ("time of a step", _result("step_ms", "{:,.2f} ms".format), "median"),
    ("waiting for data", _result("data_wait_fraction", percent), "share of a step without a batch"),
    ("warm-up", _result("compile_s", duration), "compiling, cuDNN's trials, capture"),
    (
        "first step done after",
        _result("first_step_s", duration),
        "from the start of the command, the last one of a continued run",
    ),
    (
        "training time",
        _result("train_s", duration),
        "all steps, those before a stop too, without evaluation and saving",
    ),
    (
        "time in all",
        _result("wall_s", duration),
        "from the start of the command, the last one of a continued run, to the result",
    ),
    (
        "peak memory",
        _result("peak_memory_bytes", lambda value: f"{value / 2**30:.2f} GiB"),
        "of the GPU; on the CPU, of the process",
    ),
    ("skipped steps", _result("skipped_steps", "{:,}".format), "updates left out because fp16 overflowed"),
    ("recompilations", _result("recompilations", "{:,}".format), "after warm-up; 0 is right"),
)


def figures(runs: Sequence[RunRecord]) -> list[Row]:
    """What the runs have come to; figures that no run has are left out."""
    rows = [Row(name, [get(run) for run in runs], meaning) for name, get, meaning in _FIGURES]
    return [row for row in rows if set(row.values) != {_UNKNOWN}]


def tiles(run: RunRecord) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures that come first."""
    result, record = run.result, run.evals["test"][-1] if run.evals["test"] else {}
    speed, found = result.get("images_per_sec") or {}, []
    if record.get("accuracy") is not None:
        counts = (
            f"{record['correct']:,} of {record['seen']:,}" if "correct" in record and "seen" in record else ""
        )
        found.append(("test accuracy", percent(record["accuracy"], 2), counts))
    if result.get("best_test_accuracy") is not None:
        found.append(
            (
                "best",
                percent(result["best_test_accuracy"], 2),
                f"step {result['best_step']:,}, by the {result['best_selected_on']} set",
            )
        )
    if speed.get("median"):
        found.append(
            ("images per second", f"{speed['median']:,.0f}", f"{speed['p10']:,.0f} – {speed['p90']:,.0f}")
        )
    if result.get("train_s") is not None:
        since = "since it was continued" if run.environment.get("continued") else "in all"
        found.append(
            ("training time", duration(result["train_s"]), f"{duration(result.get('wall_s'))} {since}")
        )
    if result.get("num_parameters"):
        found.append(("parameters", _short(result["num_parameters"]), f"{result['num_parameters']:,}"))
    return found


def _short(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return (
        f"{value:.15g}" if isinstance(value, float) else str(value)
    )  # all digits: rounded, a changed value may look like the default


def config_rows(runs: Sequence[RunRecord]) -> list[Row]:
    fields = dict(leaf_fields())
    rows = []
    for key in dict.fromkeys([*fields, *(key for run in runs for key in run.values)]):
        values = [_text(run.values.get(key)) for run in runs]
        known = key in fields
        default = _text(fields[key].get_default()) if known else ""
        changed = tuple(value != default for value in values)
        meaning = fields[key].description or "" if known else "no key of this version"
        rows.append(Row(key, values, meaning, default, changed, len(set(values)) > 1))
    return rows


def environment_rows(runs: Sequence[RunRecord]) -> list[Row]:
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
            name, values = (
                name.removesuffix(" bytes"),
                [f"{int(text) / 2**30:.1f} GiB" if text.isdigit() else text for text in values],
            )
        rows.append(Row(name, values, differs=len(set(values)) > 1))
    return rows


def evaluations(run: RunRecord) -> list[dict[str, str]]:
    rows = []
    for split, records in run.evals.items():
        for record in records:
            accuracy, loss = record.get("accuracy"), record.get("loss")
            rows.append(
                {
                    "split": split,
                    "epoch": number(record.get("epoch") or 0),
                    "step": f"{record.get('step') or 0:,}",
                    "loss": _UNKNOWN if loss is None else f"{loss:.4f}",
                    "accuracy": _UNKNOWN if accuracy is None else percent(accuracy, 2),
                    "counts": f"{record.get('correct', '–')}/{record.get('seen', '–')}",
                }
            )
    return rows
