"""Runs programs of others that train many times in one process, and reads the accuracies and times that they
print.

Such programs are airbench's (github.com/KellerJordan/cifar10-airbench) and Hive's
(github.com/hiverge/cifar10-speedrun). They are run as they are, from their own checkout: nothing of them is
part of this project. They read `cifar10/train.pt` and `test.pt` in the current folder, and print a table with
a row `eval` for each run.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.measure.machine import count_compiled, default_caches
from benchmarks.peers.watched import user_environment
from benchmarks.publish.whole_runs import TimedRun
from pipeline.data import ImageSet, Splits
from pipeline.errors import TrainingError, UserError

ONE_VIEW, THEIR_VIEWS = "one view", "with their views"
_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # of a folder
# How long to wait for the GPU of a stopped program, in times of its longest run: it may have launched the
# whole of its next run.
_REST = 2.0
_TRAINED = 0.5  # accuracy above which a network counts as trained: a warm-up may train on random labels


@dataclass
class PeerProgram:
    """A program that is stopped while others are timed.

    Attributes:
        name: in the records.
        path: of its file.
        folder: that it runs in, with its data.
        wait_s: seconds from its start to its first trained network; None until then.
        compiled: number of kernels that it compiled in these seconds; None until then.
        runs: those that were timed, numbered from 0 in place of a seed.
    """

    name: str
    path: Path
    folder: Path
    wait_s: float | None = None
    compiled: int | None = None
    runs: list[TimedRun] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _started: float = 0.0
    _columns: tuple[str, ...] = ()

    def take(self, count: int) -> None:
        """Let the program go on until it has finished COUNT more runs, and stop it again.

        Returns when the GPU has finished what the program had launched before it was stopped.
        The first run after a start or a stop is not timed: it compiles, or was stopped in the middle.

        Raises:
            TrainingError: the program ended before, or its rows cannot be read.
        """
        if self._process is None:
            self._start()
        else:
            self._signal(signal.SIGCONT)
        finished = self._finished_runs()
        next(finished)
        for _ in range(count):
            self.runs.append(next(finished))
        self._signal(signal.SIGSTOP)
        time.sleep(_REST * max(run.seconds for run in self.runs))

    def close(self) -> None:
        """End the program."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _start(self) -> None:
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(self.path)],
            cwd=self.folder,
            env=user_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _finished_runs(self) -> Iterator[TimedRun]:
        """Yield a run as soon as its last row is printed."""
        assert self._process is not None and self._process.stdout is not None
        last_line = ""
        for line in self._process.stdout:
            last_line = line.strip() or last_line
            row = self._row_of_end(line)
            if row is None:
                continue
            try:
                run = _run_of(row, len(self.runs))
            except (KeyError, ValueError):
                raise TrainingError(
                    f"{self.path}: a row of its table has no val_acc, tta_val_acc and time_seconds that are "
                    f"numbers: {line.strip()}; --peer reads the tables of airbench and Hive's program"
                ) from None
            if self.wait_s is None and run.accuracies[ONE_VIEW] > _TRAINED:
                self.wait_s = time.perf_counter() - self._started
                self.compiled = count_compiled(time.time() - self.wait_s, default_caches())
            yield run
        raise TrainingError(f"{self.path}: ended with code {self._process.wait()}; it printed: {last_line}")

    def _row_of_end(self, line: str) -> dict[str, str] | None:
        """Return the row of a run's end by column; None for other lines. Remembers the names of columns."""
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if "epoch" in cells:
            self._columns = cells
        if "eval" not in cells or len(cells) != len(self._columns):
            return None
        return dict(zip(self._columns, cells, strict=True))


def _run_of(row: Mapping[str, str], number: int) -> TimedRun:
    """Return a run from the last row of its table.

    >>> row = {"epoch": "eval", "val_acc": "0.9312", "tta_val_acc": "0.9401", "time_seconds": "1.0310"}
    >>> _run_of(row, 2)
    TimedRun(seed=2, seconds=1.031, accuracies={'one view': 0.9312, 'with their views': 0.9401})
    """
    (seconds,) = (value for name, value in row.items() if name.endswith("time_seconds"))
    accuracies = {ONE_VIEW: float(row["val_acc"]), THEIR_VIEWS: float(row["tta_val_acc"])}
    return TimedRun(seed=number, seconds=float(seconds), accuracies=accuracies)


def split_peers(items: Sequence[str], ours: str) -> dict[str, Path]:
    """Return the files of programs by their names.

    Args:
        items: NAME=FILE each.
        ours: the name of our own recipe in the records.

    Raises:
        UserError: an item is not NAME=FILE, a name is used twice, or there is no such file.
    """
    files: dict[str, Path] = {}
    for item in items:
        name, _, path = item.partition("=")
        if not _NAME.fullmatch(name):
            raise UserError(f"--peer: {item} is not NAME=FILE; a name has letters, digits, . _ + and -")
        if name in files or name == ours:
            other = "our own recipe" if name == ours else "another peer"
            raise UserError(f"--peer: {item} has the name of {other}; give it another one")
        if not Path(path).is_file():
            raise UserError(f"--peer: {item} is not NAME=FILE with the file of a program; give one")
        files[name] = Path(path).resolve()
    return files


def prepare_peers(files: Mapping[str, Path], splits: Splits, folder: Path) -> list[PeerProgram]:
    """Return programs, with the data set in a folder for each of them.

    Args:
        files: as `split_peers` returns them.
        splits: the data set, in memory.
        folder: an empty one.
    """
    peers = []
    for name, path in files.items():
        home = folder / name
        (home / "cifar10").mkdir(parents=True)
        for part, images in (("train", splits.train), ("test", splits.test)):
            _write(images, splits.class_names, home / "cifar10" / f"{part}.pt")
        peers.append(PeerProgram(name, path, home))
    return peers


def _write(images: object, class_names: Sequence[str], path: Path) -> None:
    """Write images as these programs read them: uint8 (N, H, W, C) and int64 labels."""
    assert isinstance(images, ImageSet), "streamed images are refused before"
    data = {"images": images.images.copy(), "labels": images.labels.copy()}
    tensors = {key: torch.from_numpy(value) for key, value in data.items()}
    torch.save({**tensors, "classes": list(class_names)}, path)
