"""The end of a run: result.json first, then what people look at. Nothing here can make a failure of a finished run."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from pipeline.config import Config
    from pipeline.data import Splits
    from pipeline.inference.predictions import Predictions
    from pipeline.inference.trained_model import Trained
    from pipeline.run.folder import RunFolder
    from pipeline.training.evaluate import EvalResult
    from pipeline.training.trainer import Trainer

Made = TypeVar("Made")


def finish(
    t: "Trainer", run: "RunFolder", evaluation: "EvalResult", splits: "Splits", started: float
) -> None:
    """Write result.json, then draw curves, contact sheet and report as the config asks. The last line printed is the run folder.

    What fails after result.json is told in one line and left out; at a signal, all that is left.
    """
    from pipeline.profiling.step_profiler import STEPS
    from pipeline.run.console import OTHER_ACCURACIES
    from pipeline.run.records import write_result

    result = describe_result(t, evaluation, started)
    write_result(run, result)
    again = f"python -m pipeline report --refresh {run.path} makes its report"
    t.stop.idle(0, f"after training; {again}")
    say, log = t.console.say, t.config.log
    speed = result["images_per_sec"]["median"]
    say(
        f"test accuracy {result['test_accuracy']:.2%} at the last step, best {result['best_test_accuracy']:.2%} "
        f"(step {result['best_step']}, selected on the {result['best_selected_on']} set); "
        + "".join(
            f"{name} {result[f'test_{key}']:.2%}; "
            for key, name in OTHER_ACCURACIES.items()
            if f"test_{key}" in result
        )
        + (f"{speed:,.0f} img/s, " if speed else "")
        + f"{result['wall_s']:.1f} s in all"
    )
    if t.profiler is not None and t.profiler.table is not None:
        say(f"profile, for Perfetto: {run.path / 'profile' / 'trace.json.gz'}\n{t.profiler.table}")
    elif t.profiler is not None:
        say(f"no profile: it takes {STEPS} steps after warm-up, and the run was over before; raise duration")
    if t.stop.requested:
        say(f"stopped: by signal {t.stop.number} after training; {again}\n{run.path}")
        return
    _attempt(say, "curves", lambda: _draw_curves(run.path))
    trained = predictions = None
    if log.explain or log.report or log.tensorboard:
        trained = _attempt(say, "", lambda: _load(run.path, splits, t.processes.device))
    if trained is not None and (log.explain or log.report):
        predictions = _attempt(say, "", lambda: _examine(trained, log.explain, log.report))
    if trained is not None and predictions is not None and len(predictions.maps):
        _attempt(say, "Grad-CAM", lambda: draw_sheet(trained, predictions))
    if trained is not None and log.tensorboard:
        _attempt(say, "", lambda: _write_tensorboard(trained, t.state.step, result, predictions))
    if log.report:
        _attempt(say, "report", lambda: _write_report(run.path))
    say(what_next(run.path, t.config))
    say(str(run.path))


def _attempt(say: Callable[[str], None], what: str, work: Callable[[], Made]) -> Made | None:
    """The work's result, announced as WHAT; None where it failed, which is told and no more: training is done and on record."""
    try:
        made = work()
    except Exception as error:
        # the first line is enough: torch's tracer shows whole graphs
        say(
            f"warning: {what or 'after training'}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        )
        return None
    if what:
        say(f"{what}: {made}")
    return made


def _draw_curves(path: Path) -> Path:
    from pipeline.report.curves import draw_curves

    return draw_curves(path)


def _load(path: Path, splits: "Splits", device: "torch.device") -> "Trained":
    from pipeline.inference.trained_model import load_trained

    return load_trained(path, device=device, splits=splits)


def _examine(trained: "Trained", explain: bool, keep: bool) -> "Predictions":
    from pipeline.explain.analyse_test_set import examine

    predictions = examine(trained, explain=explain)
    if keep:
        assert trained.run is not None
        predictions.save(trained.run.path)
    return predictions


def draw_sheet(trained: "Trained", predictions: "Predictions") -> Path:
    """Draw `contact_sheet.png` of a run out of the first of its shown images."""
    from pipeline.explain import METHODS, draw_contact_sheet
    from pipeline.explain.explain_model import EXPLAINED_IMAGES, explain_samples

    assert trained.run is not None
    picture, config = trained.run.path / "contact_sheet.png", trained.config
    explained = explain_samples(trained, predictions.shown[:EXPLAINED_IMAGES].tolist())
    about = f"{config.model.name} on {config.data.dataset}, test accuracy {(predictions.rank == 0).mean():.2%} in float32"
    draw_contact_sheet(
        picture,
        explained,
        trained.run.path.name,
        f"{about}; {METHODS[explained.method].title} of {explained.layer}",
    )
    return picture


def _write_tensorboard(
    trained: "Trained", step: int, result: dict[str, Any], predictions: "Predictions | None"
) -> None:
    from pipeline.report.run_record import flatten
    from pipeline.report.tensorboard import write_end_of_run

    assert trained.run is not None
    hparams = flatten(trained.config.model_dump(mode="json"))
    metrics = {name: result[name] for name in ("test_accuracy", "best_test_accuracy", "test_loss", "train_s")}
    metrics["images_per_sec"] = result["images_per_sec"]["median"]
    write_end_of_run(
        trained.run.path, trained.model, trained.splits.image_size, step, hparams, metrics, predictions
    )


def _write_report(path: Path) -> Path:
    from pipeline.report.page import FILE, write_report

    return write_report([path], path / FILE)


def what_next(path: Path, config: "Config") -> str:
    """Commands to go on with: by the front door where the run came through it, and the run's own with another learning rate."""
    from pipeline.run.environment import command_line

    command = command_line()
    pipeline = "./launch.sh" if "./launch.sh" in command else "python -m pipeline"
    parts = [f"next: {pipeline} evaluate {path}", f"tensorboard --logdir {path.parent}"]
    if {"./launch.sh", "pipeline.train", "pipeline"} & set(
        command
    ):  # not where a program of the user's own called `train`
        same = [word for word in command if not word.startswith(("optimizer.lr=", "resume="))]
        parts.append(
            f"change a key and run again, such as {shlex.join([*same, f'optimizer.lr={config.optimizer.lr / 2:g}'])}"
        )
    return "; ".join(parts)


def describe_result(t: "Trainer", evaluation: "EvalResult", started: float) -> dict[str, Any]:
    """The contents of result.json. Accuracies are fractions, of the raw weights with one view per image where no name says otherwise."""
    from pipeline.models import num_parameters

    config, state, plan, best = t.config, t.state, t.plan, t.state.best
    return {
        **{f"test_{key}": value for key, value in evaluation.figures().items()},
        "best_test_accuracy": best["test_accuracy"],
        "best_step": best["step"],
        "best_selected_on": best["selected_on"],
        "train_loss": state.last_train["loss"],
        "num_parameters": num_parameters(state.model),
        "steps": state.step,
        "epochs": plan.epoch(state.step),
        **t.clock.summary(),
        "first_step_s": t.clock.first_step_at - started if t.clock.first_step_at else None,
        "compile_s": t.clock.warmup_s,
        "train_s": t.clock.train_s,
        "wall_s": time.perf_counter() - started,
        "peak_memory_bytes": peak_memory_bytes(t.processes.device),
        "skipped_steps": state.last_train["skipped_steps"],
        "recompilations": t.step.recompilations,
        "loader": config.data.loader,
        "device": t.processes.device.type,
        "world_size": t.processes.shard.world_size,
        "precision": config.precision.mode,
        "batch_size": config.data.batch_size,
        "seed": config.seed,
    }


def peak_memory_bytes(device: "torch.device") -> int:
    """Most memory that torch held on the GPU at once; on the CPU the process's largest resident size. Bytes."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
