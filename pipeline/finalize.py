"""Ends a run: writes result.json, then draws curves, contact sheet and report.

Once result.json is written the run is finished: a failure after it becomes a warning.
"""

import contextlib
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.process.command_line import pipeline_command, same_command
from pipeline.process.import_beside import import_beside, wait_for_imports
from pipeline.process.signals import StopSignal, name_of
from pipeline.process.start_time import tell_launcher
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult
from pipeline.run.trackers import Trackers, wanted

if TYPE_CHECKING:
    import torch

    from pipeline.config import Config
    from pipeline.inference.predictions import Predictions
    from pipeline.inference.trained_model import Trained
    from pipeline.training.evaluate import EvalResult
    from pipeline.training.trainer import Trainer

Made = TypeVar("Made")
Say = Callable[[str], None]


def import_for_the_end(config: "Config") -> None:
    """Begin to import, in a thread, what `finish` needs.

    Of the grad-cam library, those packages that it imports. It is imported itself with stand-ins for others,
    which no other thread may see.
    """
    log, with_tensorboard = config.log, "tensorboard" in wanted(config)
    names = ["pipeline.report.curves", "matplotlib.backends.backend_agg"]
    if log.explain or log.report or with_tensorboard:
        names.append("pipeline.inference.trained_model")
    if log.explain or log.report:
        names += ["pipeline.explain.analyse_test_set", "pipeline.explain.contact_sheet"]
    if log.explain:
        names += ["cv2", "scipy.ndimage", "ttach"]
    if log.report:
        names += ["pipeline.report.page", "jinja2"]
    if with_tensorboard:
        names += ["pipeline.report.tensorboard", "torch.utils.tensorboard"]
    import_beside(names)


def finish(trainer: "Trainer", evaluation: "EvalResult") -> None:
    """Write result.json, then draw what the config asks for, and close the trackers. The last line printed is
    the run folder.

    Args:
        trainer: after training; it has a run folder.
        evaluation: on the test set at the last step.
    """
    run, say, stop = trainer.run, trainer.console.say, trainer.stop
    assert run is not None
    trainer.timeline.begin("finishing")
    result = describe_result(trainer, evaluation)
    result.write(run)
    trackers = trainer.trackers
    if trackers is not None:
        trackers.write_result(result)
    remains = f"{pipeline_command('report', '--refresh', run.path)} makes its report"
    stop.idle(0, f"after training; {remains}")
    say(_describe_for_people(result))
    _print_profile(trainer, run)
    stopped = stop.requested
    if stopped:
        say(f"stopped: by {name_of(stop.number)} after training; {remains}")
    elif _draw_pictures(trainer, run, result):
        remains = "the run is complete"
    if trackers is not None:
        _close_trackers(trackers, run, result, stop, "training" if stopped else "the pictures", remains)
    if not stopped:
        stop.idle(0, f"after the end of the run; {remains}")
        _say_trackers(say, run.path, trainer.config, trackers.working if trackers is not None else ())
        say(next_commands(run.path, trainer.config))
    say(str(run.path))
    _write_timeline(trainer, run, result)
    tell_launcher(run.result)


def _close_trackers(
    trackers: Trackers, run: RunFolder, result: RunResult, stop: StopSignal, place: str, remains: str
) -> None:
    """Send the pictures that there are, and wait for the trackers. The message of a signal meanwhile names
    PLACE, and ends with REMAINS."""
    names = ", ".join(trackers.working)
    lost = f", in the wait for {names}, which may lack records" if names else ""
    stop.idle(0, f"after {place}{lost}; {remains}")
    pictures = {"curves": run.curves, "contact_sheet": run.contact_sheet, "report": run.report}
    trackers.add_pictures(pictures, result.steps)
    trackers.close()


def _write_timeline(trainer: "Trainer", run: RunFolder, result: RunResult) -> None:
    """Write result.json again, with the time of what came after it."""
    timeline = {**trainer.timeline.seconds(), "exit": None}
    with contextlib.suppress(OSError):  # the result is there
        result.model_copy(update={"timeline": timeline}).write(run)


def describe_result(trainer: "Trainer", evaluation: "EvalResult") -> RunResult:
    """Return the contents of result.json."""
    from pipeline.models import num_parameters

    config, state, clock = trainer.config, trainer.state, trainer.clock
    started, parts, data = trainer.timeline.started, trainer.timeline.seconds(), trainer.timeline.data
    assert state.best is not None and state.last_train is not None
    return RunResult(
        **{f"test_{name}": value for name, value in evaluation.figures().model_dump().items()},
        best_test_accuracy=state.best.test_accuracy,
        best_step=state.best.step,
        best_selected_on=state.best.selected_on,
        train_loss=state.last_train.loss,
        num_parameters=num_parameters(state.model),
        steps=state.step,
        epochs=trainer.plan.epoch(state.step),
        images_per_sec=clock.throughput(),
        step_ms=clock.step_ms(),
        data_wait_fraction=clock.data_wait_fraction(),
        first_step_s=clock.first_step_at - started if clock.first_step_at else None,
        compile_s=clock.warmup_s,
        train_s=clock.train_s,
        wall_s=sum(parts.values()),
        timeline={**parts, "exit": None},
        data_s=data.seconds if data is not None else None,
        data_first_time=data.first_time if data is not None else None,
        peak_memory_bytes=peak_memory_bytes(trainer.processes.device),
        skipped_steps=state.last_train.skipped_steps,
        recompilations=trainer.step.recompilations,
        loader=config.data.loader,
        device=trainer.processes.device.type,
        world_size=trainer.processes.shard.world_size,
        precision=config.precision.mode,
        batch_size=config.data.batch_size,
        seed=config.seed,
    )


def peak_memory_bytes(device: "torch.device") -> int:
    """Return the most bytes that torch held on the GPU at once; on the CPU the largest resident size of the
    process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _describe_for_people(result: RunResult) -> str:
    selected = f"step {result.best_step}, selected on the {result.best_selected_on} set"
    best = f"best {result.best_test_accuracy:.2%} ({selected})"
    others = [f"{label} {value:.2%}" for label, value in result.evaluation.other_accuracies().items()]
    speed = f"{result.images_per_sec.median:,.0f} img/s, " if result.images_per_sec.median else ""
    accuracy = f"test accuracy {result.test_accuracy:.2%} at the last step"
    return "; ".join([f"{accuracy}, {best}", *others, f"{speed}{result.wall_s:.1f} s total"])


def _print_profile(trainer: "Trainer", run: RunFolder) -> None:
    from pipeline.profiling.step_profiler import STEPS

    profiler, say = trainer.profiler, trainer.console.say
    if profiler is None:
        return
    if profiler.table is not None:
        say(f"profile, for Perfetto: {run.profile / 'trace.json.gz'}\n{profiler.table}")
    else:
        say(f"no profile: it takes {STEPS} steps after warm-up, and the run ended before; raise duration")


# --- pictures -----------------------------------------------------------------------------------------------


def _draw_pictures(trainer: "Trainer", run: RunFolder, result: RunResult) -> bool:
    """Draw curves, contact sheet, TensorBoard's images and the report, each even if another one fails.

    Returns:
        False if the config asks for a report, and it could not be made.
    """
    wait_for_imports()
    say, log = trainer.console.say, trainer.config.log
    trained = predictions = None
    _attempt(say, "curves", lambda: _draw_curves(run))
    tensorboard = "tensorboard" in wanted(trainer.config)
    if log.explain or log.report or tensorboard:
        trained = _attempt(say, "", lambda: _load(trainer, run))
    if trained is not None and (log.explain or log.report):
        predictions = _attempt(say, "", lambda: _examine(trained, run, log.explain, log.report))
    if trained is not None and predictions is not None and len(predictions.maps):
        _attempt(say, "Grad-CAM", lambda: _draw_sheet(trained, run, predictions))
    if trained is not None and tensorboard:
        _attempt(say, "", lambda: _write_tensorboard(trained, run, result))
    if not log.report:
        return True
    _write_timeline(trainer, run, result)  # which the report shows
    return _attempt(say, "report", lambda: _write_report(run)) is not None


def _attempt(say: Say, title: str, work: Callable[[], Made]) -> Made | None:
    """Return the result of the work, printed behind the title if there is one; None, with a warning, if it
    failed."""
    try:
        made = work()
    except Exception as error:
        # the first line is enough: torch's tracer shows whole graphs
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        say(f"warning: {title or 'after training'}: {reason}")
        return None
    if title:
        say(f"{title}: {made}")
    return made


def _draw_curves(run: RunFolder) -> Path:
    from pipeline.report.curves import draw_curves

    return draw_curves(run.path)


def _load(trainer: "Trainer", run: RunFolder) -> "Trained":
    from pipeline.inference.trained_model import load_trained

    return load_trained(run.path, device=trainer.processes.device, splits=trainer.splits)


def _examine(trained: "Trained", run: RunFolder, explain: bool, keep: bool) -> "Predictions":
    from pipeline.explain.analyse_test_set import examine

    predictions = examine(trained, explain=explain)
    if keep:
        predictions.save(run.path)
    return predictions


def _draw_sheet(trained: "Trained", run: RunFolder, predictions: "Predictions") -> Path:
    """Draw `contact_sheet.png` from the first of the chosen images."""
    from pipeline.explain import METHODS, draw_contact_sheet
    from pipeline.explain.explain_model import EXPLAINED_IMAGES, explain_samples

    config = trained.config
    explained = explain_samples(trained, predictions.shown[:EXPLAINED_IMAGES].tolist())
    accuracy = f"test accuracy {(predictions.rank == 0).mean():.2%} in float32"
    maps = f"{METHODS[explained.method].title} of {explained.layer}"
    subtitle = f"{config.model.name} on {config.data.dataset}, {accuracy}; {maps}"
    draw_contact_sheet(run.contact_sheet, explained, run.path.name, subtitle)
    return run.contact_sheet


def _write_tensorboard(trained: "Trained", run: RunFolder, result: RunResult) -> None:
    from pipeline.config import default_values, flatten
    from pipeline.report.tensorboard import write_end_of_run

    defaults = default_values()
    values = flatten(trained.config.model_dump(mode="json"))
    hparams = {key: value for key, value in values.items() if value != defaults[key]}
    metrics = {
        "test_accuracy": result.test_accuracy,
        "best_test_accuracy": result.best_test_accuracy,
        "test_loss": result.test_loss,
        "train_s": result.train_s,
        "images_per_sec": result.images_per_sec.median,
    }
    write_end_of_run(run, trained.model, trained.splits.image_size, result.steps, hparams, metrics)


def _write_report(run: RunFolder) -> Path:
    from pipeline.report.page import write_report

    return write_report([run.path], run.report)


def _say_trackers(say: Say, path: Path, config: "Config", working: Iterable[str]) -> None:
    """Print the commands that show the run in its trackers; a server and a tracker that failed need none."""
    database, offline = path.parent / "mlflow.db", path / "wandb"
    commands = {
        "wandb": f"wandb sync {shlex.quote(str(offline))}/offline-run-*",
        "mlflow": shlex.join(["mlflow", "ui", "--backend-store-uri", f"sqlite:///{database}"]),
        "trackio": shlex.join(["trackio", "show", "--project", config.log.project]),
    }
    local = database.is_file() and not os.environ.get("MLFLOW_TRACKING_URI")
    there = {"wandb": any(offline.glob("offline-run-*")), "mlflow": local, "trackio": True}
    for name in working:
        if there.get(name):
            say(f"{name}: {commands[name]}")


def next_commands(path: Path, config: "Config") -> str:
    """Return commands to go on with, ready to be copied."""
    folder = () if path.parent == Path("runs") else (path.parent,)  # its default
    parts = [f"next: {pipeline_command('evaluate', path)}"]
    if "tensorboard" in wanted(config):
        parts.append(pipeline_command("tensorboard", *folder))
    again = same_command(f"optimizer.lr={config.optimizer.lr / 2:g}")
    if again is not None:
        parts.append(f"change a key and run again, such as {again}")
    return "; ".join(parts)
