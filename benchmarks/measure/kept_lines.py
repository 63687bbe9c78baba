"""Reads and writes the file of `--keep`: finished parts of a benchmark, a JSON line each."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from benchmarks.publish.strict import Strict
from pipeline.errors import UserError

_Line = TypeVar("_Line", bound=Strict)


def read_lines(path: Path, kind: type[_Line], what: str) -> Iterator[tuple[str, _Line]]:
    """Yield the lines of a file, which need not exist, in their order.

    Args:
        path: of the file.
        kind: of the lines.
        what: such a line is, as in `is no run`.

    Yields:
        The place of a line, for messages, and the line.

    Raises:
        UserError: the file cannot be written, or a line is none of this kind.
    """
    try:
        path.open("a").close()  # fails before anything is timed if lines cannot be added
    except OSError as error:
        raise UserError(f"--keep: {path} cannot be written ({error.strerror}); give another file") from None
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            yield f"--keep: {path}:{number}", kind.model_validate_json(text)
        except ValidationError:
            raise UserError(f"--keep: {path}:{number} holds no {what}; remove the line") from None


def add_line(path: Path | None, line: Strict) -> None:
    """Add a line to a file; without a path nothing is kept."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
