"""Finds the checkpoint of a run that a person names: a step, `best`, or `resume=RUN/checkpoints/step-N`."""

from pathlib import Path

from pipeline.atomic_io import read_json
from pipeline.errors import UserError
from pipeline.run.checkpoint import folder_of, steps_in
from pipeline.run.folder import RunFolder, step_of


def known_steps(run: RunFolder) -> str:
    """Return the steps of a run's checkpoints as text, for messages."""
    steps = (step_of(path.name) for path in steps_in(run.checkpoints) if path.is_dir())
    return ", ".join(str(step) for step in sorted(step for step in steps if step is not None)) or "none"


def named_checkpoint(run: RunFolder, name: str, key: str) -> Path:
    """Return the checkpoint of a run with this name. It is not verified.

    Args:
        run: the run folder.
        name: a step or `step-N`, with any number of leading zeros.
        key: gives the name; begins the message.

    Raises:
        UserError: the name is of another form, or there is no such checkpoint; names those that there are.
    """
    step = int(name) if name.isascii() and name.isdecimal() and len(name) < 19 else step_of(name)
    if step is None:
        form = f"{name!r} is neither last, best nor a step such as 82 or step-82"
        raise UserError(f"{key}: {form}; {run.path} holds {known_steps(run)}")
    folder = folder_of(run.checkpoints, step)
    if not folder.is_dir():
        raise UserError(f"{key}: {run.path} holds no step {step}; it holds {known_steps(run)}")
    return folder


def best_checkpoint(run: RunFolder) -> Path:
    """Return the checkpoint that best.json names. It is not verified.

    Raises:
        UserError: best.json is missing or damaged, or names a checkpoint that is gone.
    """
    remedy = f"name a step with --checkpoint: {known_steps(run)}"
    values = read_json(run.best, remedy)
    step = values.get("step") if isinstance(values, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise UserError(f"{run.best}: names no step; {remedy}")
    return named_checkpoint(run, str(step), str(run.best))


def split_path(path: Path) -> tuple[Path, str | None]:
    """Split the value of `resume` into the path of a run and the name of a checkpoint, if it names one.

    >>> split_path(Path("runs/a-1/checkpoints/step-82"))
    (PosixPath('runs/a-1'), 'step-82')
    """
    if path.parent.name == "checkpoints" and step_of(path.name) is not None:
        return path.parents[1], path.name
    return path, None
