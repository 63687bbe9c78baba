"""Draws `report.html`: collects all that the template shows, as text and numbers, and writes the page."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.atomic_io import write_whole
from pipeline.errors import UserError
from pipeline.plotting import style
from pipeline.profiling.bottleneck import bottleneck_of_run
from pipeline.report.classes import Confusion, class_rows, confusion_of
from pipeline.report.figures import duration
from pipeline.report.gallery import Shown, gallery
from pipeline.report.panels import charts_of_many, charts_of_one, color
from pipeline.report.reliability import Reliability, reliability_of
from pipeline.report.run_record import RunRecord, read_run
from pipeline.report.series import letter, number, percent
from pipeline.report.tables import (
    config_rows,
    different_tests,
    environment_rows,
    evaluations,
    figures,
    tiles,
)

_MAX_MISTAKES_OF_MANY = 5  # of each run where several are shown
_MAX_UNSURE = 5
_MAX_STRETCHES = 6  # of skipped steps
# parts of a run's time: meaning, and the number of a colour that differs from those beside it
_PARTS = {
    "launcher": ("launcher: checking the recipe", 5),
    "imports": ("importing torch", 6),
    "data": ("reading the data set", 3),
    "build": ("building network and loaders", 4),
    "compile": ("warm-up: first steps, compilation", 2),
    "capture": ("capturing CUDA graphs", 5),
    "training": ("steady training", 1),
    "evaluation": ("evaluation", 3),
    "saving": ("saving", 4),
    "finishing": ("pictures and report", 6),
    "exit": ("exit", 5),
}


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Draw the page of these runs into one file, the same bytes for the same folders.

    Args:
        folders: run folders, in the order of the page; several are shown side by side.
        output: the file; replaced if it is there.

    Returns:
        `output`.

    Raises:
        UserError: one of them is not a run folder, or the file cannot be written.
    """
    assert folders, "a report of no run"
    html = _render(page_of([read_run(folder) for folder in folders]))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, html)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{output}: cannot be written ({reason}); choose another place with --output"
        ) from None
    return output


def _render(variables: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    # class names, paths and commands may hold markup: everything is escaped but the style sheet
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sheet = Markup(files("pipeline").joinpath("templates/report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2").render(variables, style=sheet).lstrip()


@dataclass(frozen=True)
class RunView:
    """One run on the page.

    Attributes:
        status: a sentence on a run that has not finished; empty for a finished run.
        continued: step and command of each process that continued the run.
        times: (name, duration, fraction of the whole, number of the colour) of the parts of the run's time.
        time_of: a sentence on their sum.
        tested: a sentence on the predictions of the test set.
        unsure: right predictions of the lowest confidence, if there are few mistakes.
    """

    letter: str
    color: str
    name: str
    subtitle: str
    status: str
    problems: list[str]
    command: str
    continued: list[tuple[int, str]]
    bottleneck: str
    skipped: str
    times: list[tuple[str, str, float, int]]
    time_of: str
    tested: str
    confusion: Confusion | None
    reliability: Reliability | None
    mistakes: list[Shown]
    unsure: list[Shown]


def page_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the variables of the template."""
    single = len(runs) == 1
    views = [_view(run, i, single) for i, run in enumerate(runs)]
    config = config_rows(runs)
    rows, num_classes = class_rows([run.predictions for run in runs])
    metrics, rates = [run.metrics for run in runs], [run.rates for run in runs]
    return {
        "title": runs[0].name if single else f"{len(runs)} runs side by side",
        "single": single,
        "runs": views,
        "mapped": any(item.saliency for view in views for item in [*view.mistakes, *view.unsure]),
        "figures": figures(runs),
        "different_tests": different_tests(runs),
        "tiles": tiles(runs[0]) if single else [],
        "charts": charts_of_one(metrics[0], rates[0]) if single else charts_of_many(metrics, rates),
        "evaluations": evaluations(runs[0]) if single else [],
        "class_rows": rows,
        "num_classes": num_classes,
        "config": config,
        "changed": [row for row in config if any(row.changed)],
        "differing": [row for row in config if row.differs],
        "environment": environment_rows(runs),
    }


def _view(run: RunRecord, position: int, single: bool) -> RunView:
    predictions = run.predictions
    shown = gallery(predictions) if predictions is not None else []
    mistakes = [item for item in shown if not item.right]
    unsure = [item for item in shown if item.right]
    return RunView(
        letter=letter(position),
        color=color(position),
        name=style.one_line(run.name),
        subtitle=_subtitle(run),
        status=_status(run),
        problems=run.problems,
        command=_command(run.environment),
        continued=[
            (int(item.get("step") or 0), _command(item)) for item in run.environment.get("continued") or []
        ],
        bottleneck=bottleneck_of_run(run.result, run.config) if run.result and run.config else "",
        skipped=_skipped(run),
        times=_times(run),
        time_of=_time_of(run),
        tested=_tested(run),
        confusion=confusion_of(predictions) if predictions is not None else None,
        reliability=reliability_of(predictions) if predictions is not None else None,
        mistakes=mistakes if single else mistakes[:_MAX_MISTAKES_OF_MANY],
        unsure=unsure[:_MAX_UNSURE] if single and len(mistakes) < 10 else [],
    )


def _command(environment: Any) -> str:
    return shlex.join(map(str, environment.get("command") or []))


def _subtitle(run: RunRecord) -> str:
    values, environment = run.values, run.environment
    count = str(values["duration"])
    plural = "" if count in ("1ep", "1st") else "s"
    gpu = (environment.get("gpu") or {}).get("name")
    device = gpu or ("GPU" if environment.get("device") == "cuda" else "CPU")
    parts = [
        f"{values['model.name']} on {values['data.dataset']}",
        count.replace("ep", " epoch" + plural).replace("st", " step" + plural),
        f"batch {values['data.batch_size']}",
        str(values["precision.mode"]),
        f"{environment['world_size']} × {device}" if environment.get("world_size") else "",
        f"seed {values['seed']}",
    ]
    return " · ".join(filter(None, parts))


def _status(run: RunRecord) -> str:
    """Return a sentence on a run that has not finished; nothing for a finished run."""
    if run.finished:
        return ""
    last = run.metrics.last
    progress = "it has logged nothing"
    if last is not None:
        progress = f"its last record is of step {last.step}, epoch {number(last.epoch)}"
    return f"This run has not finished: {progress}. `resume=auto` continues it from its last checkpoint."


def _skipped(run: RunRecord) -> str:
    train = run.metrics.train
    newest = run.result.steps if run.result is not None else getattr(run.metrics.last, "step", 0)
    if not newest:
        return "No step was recorded."
    total = train[-1].skipped_steps if train else getattr(run.result, "skipped_steps", 0)
    if not total:
        return "No step was skipped."
    stretches, before, since = [], 0, 0
    for record in train:
        now, step = record.skipped_steps, record.step
        if now > before:
            place = f"step {step}" if step == since + 1 else f"steps {since + 1}–{step}"
            stretches.append(f"{now - before} in {place}")
        before, since = now, step
    more = len(stretches) - _MAX_STRETCHES
    listed = ", ".join(stretches[:_MAX_STRETCHES]) + (f" and {more} more stretches" if more > 0 else "")
    fraction = percent(total / newest, 2)
    return f"{total:,} of {newest:,} steps ({fraction}) were skipped because fp16 overflowed: {listed}."


def _times(run: RunRecord) -> list[tuple[str, str, float, int]]:
    """Return the parts of the time of the run's last process, from the command on; nothing for a run of an
    older version, which did not time them."""
    seconds = _seconds_of_parts(run)
    total = sum(seconds.values())
    names = {part: name for part, (name, _) in _PARTS.items()}
    names["data"] += {None: "", True: " (first time)", False: " (from the cache)"}[_first_time(run)]
    return [
        (names[part], _length(value), value / total, _PARTS[part][1])
        for part, value in seconds.items()
        if total > 0
    ]


def _time_of(run: RunRecord) -> str:
    """Return a sentence on the sum of the parts; without launch.sh nobody times the end of the process."""
    seconds = _seconds_of_parts(run)
    total = duration(sum(seconds.values()))
    if "exit" in seconds:
        return f"From the command to the prompt: {total}, in these parts:"
    return f"From the command to the report: {total}, in these parts:"


def _seconds_of_parts(run: RunRecord) -> dict[str, float]:
    timeline = run.result.timeline if run.result is not None else {}
    return {part: value for part, value in timeline.items() if value is not None and part in _PARTS}


def _first_time(run: RunRecord) -> bool | None:
    return run.result.data_first_time if run.result is not None else None


def _length(seconds: float) -> str:
    """Write a part of the time.

    >>> _length(0.04), _length(0.05)
    ('< 0.1 s', '0.1 s')
    """
    return "< 0.1 s" if seconds < 0.05 else duration(seconds)


def _tested(run: RunRecord) -> str:
    predictions = run.predictions
    if predictions is None:
        return (
            "This run's folder holds no predictions: the run was stopped before its end, or had "
            "log.report=false. `python -m pipeline report RUN --refresh` makes them from the last checkpoint "
            "and the data set."
        )
    right, total = int((predictions.rank == 0).sum()), len(predictions.rank)
    parts = [percent(right / total, 2)]
    if len(predictions.class_names) > 20:
        top5 = percent(float((predictions.rank < 5).mean()), 2)
        parts.append(f"{top5} among the five most probable classes")
    sentence = f"{right:,} of {total:,} test images are right ({', '.join(parts)}) in float32, one view each"
    if run.result is not None:
        mode = run.values["precision.mode"]
        sentence += f"; the run's own evaluation, in {mode}, gives {percent(run.result.test_accuracy, 2)}"
    return f"{sentence}."
