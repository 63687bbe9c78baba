"""Defines what `bench peers` needs to know of a program: its command, log, settings and source."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
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
        trained: a line at the end of an epoch's last step.
        evaluated: a line at the end of an evaluation, with `top1` in per cent.
        parameters: a line with the number of `parameters`; None if there is none.
    """

    step: re.Pattern[str]
    trained: re.Pattern[str]
    evaluated: re.Pattern[str]
    parameters: re.Pattern[str] | None = None


class LineLog(RunLog):
    """Reads the log of a program of others.

    The speed of an epoch is that from the end of its first step to the end of its last. The start of the
    workers that load the images comes before: in an epoch as short as those here it would take a large part
    of the time, and in one of ImageNet almost none. Log lines come at once, so their arrival is the time.

    Args:
        patterns: of the program's log.
        images_per_epoch: images that it trains on in one epoch.
        batch_size: images of its first step.
    """

    def __init__(self, patterns: LogPatterns, images_per_epoch: int, batch_size: int):
        super().__init__()
        self._patterns, self._images = patterns, images_per_epoch - batch_size
        self._began: float | None = None
        self._trained: float | None = None

    def read(self, line: str, at_s: float) -> None:
        patterns = self._patterns
        if (match := patterns.step.search(line)) and int(match["step"]) == 0:
            self._began = at_s
        if patterns.trained.search(line):
            self._trained = at_s
        if match := patterns.evaluated.search(line):
            rate = None
            if self._began is not None and self._trained is not None and self._trained > self._began:
                # an epoch of one step has no other to time
                rate = self._images / (self._trained - self._began) if self._images > 0 else None
            self.epochs.append(
                PeerEpoch(accuracy=float(match["top1"]) / 100, evaluated_s=at_s, images_per_sec=rate)
            )
            self._began = self._trained = None
        if patterns.parameters and (match := patterns.parameters.search(line)):
            self.parameters = int(match["parameters"])


@dataclass(frozen=True)
class Program(ABC):
    """A program that trains on class folders.

    Attributes:
        folder: of its checkout, in which it runs.
        extra: further words of its command.
    """

    folder: Path
    extra: tuple[str, ...] = ()
    name: ClassVar[str]

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
