"""Writes the records of a run to `metrics.jsonl`, and cuts the file back for a run that is continued."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.atomic_io import parse_json, write_whole
from pipeline.run.folder import RunFolder
from pipeline.run.records import EvalRecord, TrainRecord


class MetricsLog:
    """Writes the records of a run to `metrics.jsonl`, one JSON object a line.

    A continued run cuts the file back to the step that it continues from.

    Args:
        run: the run folder.
        resume_step: records after this step are dropped.
    """

    def __init__(self, run: RunFolder, resume_step: int):
        self._path = run.metrics
        if run.metrics.exists():
            _cut_back(run.metrics, resume_step)
        self._file = run.metrics.open("a", encoding="utf-8")

    def write(self, record: TrainRecord | EvalRecord) -> None:
        """Add a record, so that it survives a kill."""
        with self._named():
            self._file.write(json.dumps(record.to_json()) + "\n")
            self._file.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Give an OSError the path of the file: a full disk is noticed by a write, whose error names no
        file."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(self._path)) from None

    def close(self) -> None:
        with self._named():
            self._file.close()


def _cut_back(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    write_whole(path, "".join(f"{line}\n" for line in lines if _is_until(line, step)))


def _is_until(line: str, step: int) -> bool:
    """True if a line is a record of a step up to STEP; the last line of a killed run may be cut off."""
    try:
        return parse_json(line)["step"] <= step
    except (ValueError, LookupError, TypeError):
        return False
