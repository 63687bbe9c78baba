"""Keeps finished runs in a file, a JSON line each, so that a later command runs only those that are
missing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure.kept_lines import add_line, read_lines
from benchmarks.publish.peer_runs import PeerRun
from benchmarks.publish.strict import Strict
from pipeline.errors import UserError


class KeptRun(Strict):
    """One line of the file.

    Attributes:
        program: its name.
        key: changes with its settings and its source.
        parameters: of the network, if its log tells.
        run: None of the step alone.
        step_rate: images per second of the step alone; None of a program.
    """

    program: str
    key: str
    parameters: int | None = None
    run: PeerRun | None = None
    step_rate: float | None = None


@dataclass
class KeptRuns:
    """The runs in a file; without a path nothing is kept.

    Attributes:
        path: of the file, which need not exist.
        keys: of each program's settings.
    """

    path: Path | None
    keys: dict[str, str] = field(default_factory=dict)

    def read(self) -> Iterator[KeptRun]:
        """Yield the runs, in their order.

        Raises:
            UserError: the file cannot be written, or a line is no run, or one of other settings.
        """
        for place, kept in read_lines(self.path, KeptRun, "run") if self.path is not None else ():
            if kept.program not in self.keys:
                raise UserError(
                    f"{place} is a run of {kept.program}, which does not take part; give --peer "
                    f"{kept.program}=DIR too, or another file"
                )
            if kept.key != self.keys[kept.program]:
                raise UserError(
                    f"{place} is a run of {kept.program} with other settings, another machine or source; "
                    "give another file"
                )
            yield kept

    def add(self, program: str, run: PeerRun, parameters: int | None) -> None:
        """Add a run of a program."""
        add_line(self.path, KeptRun(program=program, key=self.keys[program], parameters=parameters, run=run))

    def add_step(self, program: str, rate: float) -> None:
        """Add the speed of the step alone of a program."""
        add_line(self.path, KeptRun(program=program, key=self.keys[program], step_rate=rate))
