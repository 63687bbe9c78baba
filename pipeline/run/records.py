"""Writes and reads the figures of a run: metrics.jsonl, result.json and env.json."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.atomic_io import read_json, write_json
from pipeline.run.folder import RunFolder


class MetricsLog:
    """Scalars of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard.

    Continuing a run cuts both back to the step that it continues from.

    Args:
        run: the run folder.
        tensorboard: write event files too.
        resume_step: records after this step are dropped.
    """

    def __init__(self, run: RunFolder, tensorboard: bool, resume_step: int):
        self._path = run.metrics
        if run.metrics.exists():
            _cut_back(run.metrics, resume_step)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._tensorboard = (
            {"log_dir": str(run.path / "tb"), "purge_step": resume_step + 1 if resume_step else None}
            if tensorboard
            else None
        )
        self._writer: Any = None

    def write(self, record: dict[str, Any]) -> None:
        """Add a record."""
        with self._named():
            self._write(record)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An OSError has the path of the file: a full disk is noticed in writing, which knows no names."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(self._path)) from None

    def _write(self, record: dict[str, Any]) -> None:
        record = without_nan(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            if (
                self._writer is None
            ):  # its import takes a second or two, which the first step does not wait for
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(**self._tensorboard)
            group = record.get("split", record["kind"])
            for key, value in record.items():
                if isinstance(value, int | float) and key not in ("step", "epoch", "correct", "seen"):
                    self._writer.add_scalar(f"{group}/{key}", value, record["step"])

    def flush(self) -> None:
        """What was written is in the files from now on, though the process be killed."""
        if self._writer is not None:
            with self._named():
                self._writer.flush()

    def close(self) -> None:
        with self._named():
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def _cut_back(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (
            ValueError,
            KeyError,
            TypeError,
        ):  # the last line of a killed run may be half a line, and after a power cut anything
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for NaN and infinity, which JSON has no word for.

    >>> without_nan({"loss": float("nan"), "step": 3})
    {'loss': None, 'step': 3}
    """
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def write_result(run: RunFolder, result: dict[str, Any]) -> None:
    write_json(run.result, without_nan(result))


def record_environment(run: RunFolder, environment: dict[str, Any], step: int) -> None:
    """Write env.json; where the run is continued, the new process's environment goes under `continued`, beside the step."""
    path = run.path / "env.json"
    if run.resume_from is not None and path.is_file():
        first = read_json(path)
        environment = {**first, "continued": [*first.get("continued", []), {"step": step, **environment}]}
    write_json(path, environment)


def changed_data(run: RunFolder, data: dict[str, Any]) -> str | None:
    """What to tell where a run is continued on other images than it had before; DATA is what is recorded of them in env.json."""
    path = run.path / "env.json"
    if run.resume_from is None or not path.is_file():
        return None
    first = read_json(path)
    before = [first, *first.get("continued", [])][-1].get("data")
    if before in (None, data):  # it was not recorded in older versions
        return None
    return (
        f"continuing on other images: {before['train']} train and {before['test']} test before, {data['train']} and {data['test']} now, or "
        "of other names or classes; the result is not that of an uninterrupted run"
    )
