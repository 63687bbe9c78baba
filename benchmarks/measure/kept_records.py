"""Keeps the records of finished parts of a benchmark in a file: a later command measures the others."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure.kept_lines import add_line, read_lines
from benchmarks.measure.machine import hash_of_sources
from benchmarks.measure.session import Session
from benchmarks.publish.records import Record
from benchmarks.publish.strict import Strict
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.process.cores import usable_cores

_SOURCES = ("pipeline", "kernels", "benchmarks/measure", "benchmarks/suites")


class _Part(Strict):
    """One line of the file.

    Attributes:
        key: changes with settings, machine and source.
        part: its name.
        records: of the part.
    """

    key: str
    part: str
    records: tuple[Record, ...]


@dataclass
class KeptRecords:
    """The finished parts in a file; without a path nothing is kept.

    Attributes:
        path: of the file, which need not exist.
        key: of the parts, from `key_of`.
    """

    path: Path | None
    key: str

    def read(self) -> dict[str, tuple[Record, ...]]:
        """Return the records of the parts, by their names.

        Raises:
            UserError: the file cannot be written, or a line is no part, or one of other settings.
        """
        parts = {}
        for place, line in read_lines(self.path, _Part, "records") if self.path is not None else ():
            if line.key != self.key:
                raise UserError(
                    f"{place} holds records of other settings, machine or source; give another file"
                )
            parts[line.part] = line.records
        return parts

    def add(self, part: str, records: Sequence[Record]) -> None:
        """Add the records of a finished part."""
        add_line(self.path, _Part(key=self.key, part=part, records=tuple(records)))


def key_of(session: Session, config: Config, *options: object) -> str:
    """Return a key that changes with what determines a measurement, but for the place of the images.

    Args:
        session: of the benchmark.
        config: that its variants start from.
        options: further settings.
    """
    values = config.model_dump(mode="json")
    values["data"].pop("root", None)
    images = len(session.splits(config).train.labels)
    machine = torch.cuda.get_device_name(session.device) if session.on_gpu else "CPU"
    parts = [values, images, machine, usable_cores(), torch.__version__, session.windows]
    parts += [session.options.steps, hash_of_sources(Path(session.recipe), _SOURCES), *map(str, options)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
