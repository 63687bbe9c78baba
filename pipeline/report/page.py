"""What the page says: everything that the template shows, as text and numbers."""

import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.plotting import style
from pipeline.profiling.bottleneck import bottleneck_of_run
from pipeline.report.classes import Confusion, class_rows, confusion_of
from pipeline.report.curves import number, percent
from pipeline.report.gallery import Shown, gallery
from pipeline.report.panels import charts_of_many, charts_of_one, color, letter, scale_note
from pipeline.report.run_record import RunRecord, read_run
from pipeline.report.tables import config_rows, duration, environment_rows, evaluations, figures, tiles

_MOST_OF_MANY = 5  # mistakes of each of several runs
_MOST_UNSURE = 5


@dataclass(frozen=True)
class RunView:
    """One run on the page."""

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
    times: list[tuple[str, str, float]]
    tested: str
    confusion: Confusion | None
    mistakes: list[Shown]
    unsure: list[Shown]


def page_of(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The template's variables."""
    single = len(runs) == 1
    views = [_view(run, i, single) for i, run in enumerate(runs)]
    config = config_rows(runs)
    rows, num_classes = class_rows([run.predictions for run in runs])
    return {
        "title": runs[0].name if single else f"{len(runs)} runs side by side",
        "single": single,
        "runs": views,
        "mapped": any(item.evidence for view in views for item in [*view.mistakes, *view.unsure]),
        "figures": figures(runs),
        "tiles": tiles(runs[0]) if single else [],
        "charts": charts_of_one(runs[0]) if single else charts_of_many(runs),
        "scale_note": scale_note(runs),
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
    return RunView(
        letter=letter(position),
        color=color(position),
        name=style.one_line(run.name),
        subtitle=_subtitle(run),
        status=_status(run),
        problems=run.problems,
        command=shlex.join(map(str, run.environment.get("command") or [])),
        continued=[
            (int(item.get("step") or 0), shlex.join(map(str, item.get("command") or [])))
            for item in run.environment.get("continued") or []
        ],
        bottleneck=bottleneck_of_run(run.result, run.config) if run.finished and run.config else "",
        skipped=_skipped(run),
        times=_times(run),
        tested=_tested(run),
        confusion=confusion_of(predictions) if predictions is not None else None,
        mistakes=mistakes if single else mistakes[:_MOST_OF_MANY],
        unsure=[item for item in shown if item.right][:_MOST_UNSURE] if single and len(mistakes) < 10 else [],
    )


def _subtitle(run: RunRecord) -> str:
    values, world_size = run.values, run.environment.get("world_size")
    device = (run.environment.get("gpu") or {}).get("name") or (
        "GPU" if run.environment.get("device") == "cuda" else "CPU"
    )
    where = [f"{world_size} × {device}"] if world_size else []
    plural = "" if str(values["duration"]) in ("1ep", "1st") else "s"
    parts = [
        f"{values['model.name']} on {values['data.dataset']}",
        str(values["duration"]).replace("ep", " epoch" + plural).replace("st", " step" + plural),
    ]
    return " · ".join(
        [
            *parts,
            f"batch {values['data.batch_size']}",
            str(values["precision.mode"]),
            *where,
            f"seed {values['seed']}",
        ]
    )


def _status(run: RunRecord) -> str:
    """Empty for a finished run."""
    if run.finished:
        return ""
    last = run.last
    where = (
        f"its last record is of step {last.get('step')}, epoch {number(last.get('epoch') or 0)}"
        if last
        else "it has logged nothing"
    )
    return f"This run has not finished: {where}. `resume=auto` continues it from its last checkpoint."


def _skipped(run: RunRecord) -> str:
    steps = run.result.get("steps") or run.last.get("step") or 0
    if not steps:
        return "No step is on record."
    total = int((run.train[-1].get("skipped_steps") if run.train else run.result.get("skipped_steps")) or 0)
    if not total:
        return "No step was skipped."
    parts, before, since = [], 0, 0
    for record in run.train:
        now = int(record.get("skipped_steps") or 0)
        if now > before:
            step = int(record.get("step") or 0)
            parts.append(
                f"{now - before} in " + (f"step {step}" if step == since + 1 else f"steps {since + 1}–{step}")
            )
        before, since = now, int(record.get("step") or 0)
    more = f" and {len(parts) - 6} more stretches" if len(parts) > 6 else ""
    share = percent(total / max(steps, 1), 2)
    return f"{total:,} of {steps:,} steps ({share}) were skipped because fp16 overflowed: {', '.join(parts[:6])}{more}."


def _times(run: RunRecord) -> list[tuple[str, str, float]]:
    """(name, duration, share of the whole) of what took the time; nothing where a run was continued, whose times are of two processes."""
    wall, train, warmup = (run.result.get(key) for key in ("wall_s", "train_s", "compile_s"))
    if not wall or train is None or warmup is None or train > wall or run.environment.get("continued"):
        return []
    parts = (
        ("warm-up: compiling, cuDNN's trials, capture", warmup),
        ("steady training", train - warmup),
        ("start, evaluation, saving", wall - train),
    )
    return [(name, duration(seconds), seconds / wall) for name, seconds in parts]


def _tested(run: RunRecord) -> str:
    predictions = run.predictions
    if predictions is None:
        return (
            "No predictions are kept in this run's folder: it was stopped before its end, or ran with log.report=false. "
            "`python -m pipeline report RUN --refresh` makes them from the last checkpoint, where the data set is at hand."
        )
    right, total = int((predictions.rank == 0).sum()), len(predictions.rank)
    top5 = (
        f", {percent(float((predictions.rank < 5).mean()), 2)} among the five most probable"
        if len(predictions.class_names) > 20
        else ""
    )
    own = run.result.get("test_accuracy")
    trained = (
        f"; the run's own evaluation, in {run.values['precision.mode']}, says {percent(own, 2)}"
        if own is not None
        else ""
    )
    return f"{right:,} of {total:,} test images are right ({percent(right / total, 2)}{top5}) in float32, one view each{trained}."


FILE = "report.html"


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Draw the page of these runs into one file, the same bytes for the same folders.

    Args:
        folders: run folders, in the order of the page; several are shown side by side.
        output: the file; replaced if it is there.

    Returns:
        `output`.

    Raises:
        UserError: one of them is no run folder, or the file cannot be written.
    """
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    assert folders, "a report of no run"
    context = page_of([read_run(folder) for folder in folders])
    # class names, paths and commands may hold markup: everything is escaped but the style sheet
    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup(files("pipeline").joinpath("templates/report.css").read_text(encoding="utf-8"))
    html = environment.get_template("report.html.j2").render(context, style=style)
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        beside.write_text(html.lstrip(), encoding="utf-8", errors="replace")
        beside.replace(output)
    except OSError as error:
        raise UserError(
            f"{output}: cannot be written ({error.strerror or error}); choose another place with --output"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink()
    return output
