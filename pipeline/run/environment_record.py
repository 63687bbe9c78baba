"""Writes and reads `env.json`: the process that began a run, and each process that continued it. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.atomic_io import read_json, write_json
from pipeline.config import FileData
from pipeline.errors import UserError
from pipeline.run.folder import RunFolder
from pipeline.run.records import Record


class _Images(Record):
    """The fingerprint of the images, as `Splits.fingerprint` makes it."""

    train: int
    test: int


class _Process(Record):
    """The part of an entry of env.json that this program reads: of the process that began the run, or of one
    that continued it."""

    step: int | None = None
    command: tuple[str, ...] = ()
    world_size: int | None = None
    device: str | None = None
    gpu: dict[str, Any] | None = None
    data: _Images | None = None
    cpu_threads: int | None = None
    decoder: str | None = None


class _Environment(_Process):
    continued: tuple[_Process, ...] = ()


def read_environment(path: Path) -> dict[str, Any]:
    """Read an env.json.

    Returns:
        Its content, unchanged: hardware, versions and command of the process that began the run, and under
        `continued` the same of each process that continued it.

    Raises:
        UserError: the file is missing, is not JSON, or is not the environment of a run.
    """
    remedy = "command and machine of the run are unknown"
    values = read_json(path, remedy)
    _Environment.of(values, path, remedy)
    return values


def read_num_threads(path: Path) -> int | None:
    """Return the number of CPU threads that a run computes with; None if its env.json does not say it."""
    return _read_last(path).get("cpu_threads")


def _read_last(path: Path) -> Mapping[str, Any]:
    """Return the entry of the process that trained last; it is empty if env.json cannot be read."""
    try:
        return _last(read_environment(path))
    except UserError:
        return {}


def record_environment(
    run: RunFolder, environment: Mapping[str, Any], step: int, before: Mapping[str, Any] | None = None
) -> None:
    """Write env.json.

    Args:
        run: the run folder.
        environment: of this process.
        step: at which it continues the run.
        before: the env.json of the run so far; the environment is added to its `continued`.
    """
    if before is not None:
        environment = {**before, "continued": [*before.get("continued", []), {"step": step, **environment}]}
    write_json(run.environment, environment)


def decoder_of(run: RunFolder | None) -> str | None:
    """Return the decoder that a run has used so far; None for a new run, or if it is not known.

    Older versions recorded none, but their configs name it.
    """
    if run is None:
        return None
    decoder = _read_last(run.environment).get("decoder")
    if decoder is not None:
        return decoder
    data = run.read_config().data
    return data.decoder if isinstance(data, FileData) and data.decoder != "auto" else None


def changed_decoder(before: Mapping[str, Any], decoder: str | None) -> str | None:
    """Return a warning if a run is continued with another decoder than before.

    Args:
        before: the env.json of the run so far.
        decoder: of this process; None if none is used.
    """
    used = _last(before).get("decoder")
    if used in (None, decoder) or decoder is None:
        return None
    return (
        f"the images are decoded by {decoder} now, and by {used} before (data.decoder): pixels differ by "
        "about a grey level; the result is not that of an uninterrupted run"
    )


def _last(environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of the process that trained last."""
    return [environment, *environment.get("continued", [])][-1]


def changed_data(before: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Return a warning if a run is continued on other images than before.

    Args:
        before: the env.json of the run so far.
        data: the fingerprint of the images.
    """
    used = _last(before).get("data")
    if used in (None, data):  # older versions did not record it
        return None
    return (
        f"the images have changed: {used['train']} train and {used['test']} test before, "
        f"{data['train']} and {data['test']} now, or their names or classes; "
        "the result is not that of an uninterrupted run"
    )
