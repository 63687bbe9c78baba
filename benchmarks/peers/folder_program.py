"""Defines what `bench peers` needs to know of a program: its command, log, settings and source."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.peers.task import Task
from benchmarks.publish.peer_runs import PeerEpoch
from pipeline.run.environment import output_of

PYTHON = sys.executable


@dataclass
class RunLog:
    """The figures of one run, read from its output line by line, and at its end from its files.

    Attributes:
        epochs: finished so far.
        parameters: of the network; None if the program does not tell.
    """

    epochs: list[PeerEpoch] = field(default_factory=list)
    parameters: int | None = None

    def read(self, line: str, at_s: float) -> None:
        """Take a line of output, and the seconds from the command to it."""

    def finish(self, output: Path) -> None:
        """Take the files that the run has left in a folder."""


@dataclass(frozen=True)
class LogPatterns:
    """How a program writes its log, as regular expressions.

    Attributes:
        step: a line of training after step `step` of the epoch, counted from 0.
        evaluated: a line at the end of an evaluation, with `top1` in per cent.
        parameters: a line with the number of `parameters`; None if there is none.
    """

    step: re.Pattern[str]
    evaluated: re.Pattern[str]
    parameters: re.Pattern[str] | None = None


class LineLog(RunLog):
    """Reads the log of a program of others, which has a line for each step.

    Log lines come at once, so their arrival is the time of a step's end.

    Args:
        patterns: of the program's log.
        task: with the batch size and the number of workers.
    """

    def __init__(self, patterns: LogPatterns, task: Task):
        super().__init__()
        self._patterns, self._task = patterns, task
        self._ends: list[float] = []  # of the steps of this epoch

    def read(self, line: str, at_s: float) -> None:
        patterns = self._patterns
        if (match := patterns.step.search(line)) and int(match["step"]) == len(self._ends):
            self._ends.append(at_s)
        if match := patterns.evaluated.search(line):
            rate = steady_rate(self._ends[: self._task.full_steps], self._task.workers, self._task.batch_size)
            self.epochs.append(
                PeerEpoch(accuracy=float(match["top1"]) / 100, evaluated_s=at_s, images_per_sec=rate)
            )
            self._ends = []
        if patterns.parameters and (match := patterns.parameters.search(line)):
            self.parameters = int(match["parameters"])


def steady_rate(ends: Sequence[float], workers: int, batch_size: int) -> float | None:
    """Return the images per second that a loader with worker processes sustains in training.

    Each worker makes whole batches, so that batches come in rounds. In the first round of an epoch the
    workers start, and in the last one only some of them may have a batch to make. Both take a large part of
    an epoch of 37 steps, and almost nothing of one of ImageNet: only the whole rounds between them count. An
    epoch without such a round counts from the end of its first step.

    Args:
        ends: seconds at the end of each step of an epoch, with a whole batch each.
        workers: number of the processes.
        batch_size: images of a step.

    >>> steady_rate([3.0, 3.5, 5.0, 5.5, 6.0], 2, 10)
    10.0
    >>> steady_rate([3.0, 3.5], 2, 10), steady_rate([3.0], 2, 10)
    (20.0, None)
    """
    first, last = workers - 1, len(ends) // workers * workers - 1
    if last <= first:
        first, last = 0, len(ends) - 1
    seconds = ends[last] - ends[first] if last > first else 0.0
    return (last - first) * batch_size / seconds if seconds > 0 else None


@dataclass(frozen=True)
class Program(ABC):
    """A program that trains on class folders.

    Attributes:
        folder: of its checkout, in which it runs.
        extra: further words of its command.
        log_options: words of its command that print a line for each step; a user need not type them.
    """

    folder: Path
    extra: tuple[str, ...] = ()
    name: ClassVar[str]
    log_options: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def command(self, task: Task, seed: int, output: Path) -> list[str]:
        """Return the words of the command that a user types; OUTPUT is an empty folder for its files."""

    @abstractmethod
    def new_log(self, task: Task) -> RunLog:
        """Return a reader for the log of one run."""

    @abstractmethod
    def images_per_epoch(self, task: Task) -> int:
        """Return the number of images that it trains on in one epoch."""

    @abstractmethod
    def differences(self, task: Task) -> Iterator[str]:
        """Yield what it does in another way than we do, a phrase each."""

    @abstractmethod
    def precision(self, task: Task) -> str:
        """Return `fp16`, `bf16` or `fp32`."""

    @abstractmethod
    def channels_last(self, task: Task) -> bool:
        """Return True if it trains in channels_last."""

    @abstractmethod
    def compile_mode(self, task: Task) -> str:
        """Return the mode of torch.compile, or `none`."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Return the versions of the packages that it uses."""

    @abstractmethod
    def source_hash(self) -> str:
        """Return a hash of its files."""

    @property
    def takes_seed(self) -> bool:
        return True

    @property
    def variables(self) -> dict[str, str]:
        """Further environment variables of its runs."""
        return {}

    def parameters(self, task: Task) -> int | None:
        """Return the number of parameters of the network, where its log does not tell."""
        return None

    def typed(self, task: Task, seed: int, output: Path) -> list[str]:
        """Return the words of the command as a user types them in the folder: `python` for this Python, and
        files of the checkout by their relative paths."""
        first, *others = self.command(task, seed, output)
        inside = f"{self.folder}/"
        program = "python" if first == PYTHON else first.replace(inside, "./", 1)
        return [program, *(word.removeprefix(inside) for word in others)]

    def commit(self) -> str | None:
        """Return the commit of the checkout; None if the folder is none."""
        git = ("git", "-C", str(self.folder))
        is_tracked = output_of(*git, "ls-files", "--error-unmatch", "train.py") is not None
        return output_of(*git, "rev-parse", "HEAD") if is_tracked else None


def count_settings(words: list[str]) -> int:
    """Count the options and the keys with a value.

    >>> count_settings(["python", "train.py", "--lr", "-0.1", "-j", "8", "data.root=x"])
    3
    """
    return sum(bool(re.match(r"--?[a-z]|[\w.]+=", word)) for word in words)
