"""Runs this project's own training, as a user does."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure.machine import hash_of_sources
from benchmarks.measure.options import merge
from benchmarks.measure.started_run import command_line
from benchmarks.peers.folder_program import Program, RunLog
from benchmarks.peers.task import Task
from benchmarks.publish.peer_runs import PeerEpoch
from pipeline.atomic_io import parse_json
from pipeline.errors import TrainingError
from pipeline.run.environment import commit
from pipeline.run.records import RunResult, TrainRecord

NAME = "quickres"
_OF_TRAINING = ("pipeline", "kernels")  # the folders of the code that trains
_EVALUATED = re.compile(r"^epoch .* test loss .* \((?P<correct>\d+)/(?P<seen>\d+)\)")


class QuickresLog(RunLog):
    """Reads the accuracies from the console, and the speed from metrics.jsonl: that of the windows between
    two evaluations, by the run's own clock, with the wait for data."""

    def read(self, line: str, at_s: float) -> None:
        if match := _EVALUATED.search(line):
            accuracy = int(match["correct"]) / int(match["seen"])
            self.epochs.append(PeerEpoch(accuracy=accuracy, evaluated_s=at_s, images_per_sec=None))

    def finish(self, output: Path) -> None:
        results = sorted(output.glob("*-*/result.json"))
        if not results:
            raise TrainingError(f"{output}: the run left no result.json")
        self.parameters = RunResult.read(results[0]).num_parameters
        lines = results[0].with_name("metrics.jsonl").read_text("utf-8").splitlines()
        rates = list(_rates(map(parse_json, lines)))
        self.epochs = [
            epoch.model_copy(update={"images_per_sec": rate})
            for epoch, rate in zip(self.epochs, rates, strict=False)
        ]


def _rates(records: Iterable[dict[str, Any]]) -> Iterator[float | None]:
    """Yield the images per second between two evaluations; None if a window there is of warm-up."""
    images, seconds, before, is_steady = 0.0, 0.0, 0, True
    for values in records:
        if values["kind"] == "eval":
            yield images / seconds if is_steady and seconds > 0 else None
            images, seconds, is_steady = 0.0, 0.0, True
            continue
        window = TrainRecord.model_validate(values)
        steps, before = window.step - before, window.step
        if window.images_per_sec and window.steps_per_sec:
            window_s = steps / window.steps_per_sec
            images, seconds = images + window_s * window.images_per_sec, seconds + window_s
        else:
            is_steady = False


@dataclass(frozen=True)
class QuickresTrain(Program):
    """`./launch.sh CONFIG key=value …`, or the module that launch.sh calls.

    Attributes:
        recipe: its path.
        overrides: keys that the user gave.
    """

    recipe: str = ""
    overrides: tuple[str, ...] = ()
    name = NAME

    def command(self, task: Task, seed: int, output: Path) -> list[str]:
        every_epoch = () if task.config.log.eval_every == "1ep" else ("log.eval_every=1ep",)
        further = [f"duration={task.epochs}ep", f"seed={seed}", f"log.dir={output}", *every_epoch]
        return command_line(self.recipe, merge(self.overrides, further))

    def new_log(self, task: Task) -> RunLog:
        return QuickresLog()

    def images_per_epoch(self, task: Task) -> int:
        return task.full_steps * task.batch_size

    def differences(self, task: Task) -> Iterator[str]:
        yield from ()

    def precision(self, task: Task) -> str:
        return task.config.precision.mode

    def channels_last(self, task: Task) -> bool:
        return task.config.runtime.channels_last

    def compile_mode(self, task: Task) -> str:
        return task.config.compile.mode_on(task.device)

    def versions(self) -> dict[str, str]:
        return {}  # the record's own

    def source_hash(self) -> str:
        return hash_of_sources(Path(self.recipe), _OF_TRAINING)

    @property
    def variables(self) -> dict[str, str]:
        return {"NUM_PROCESSES": "1"}  # the programs of others train on one GPU, too

    def commit(self) -> str | None:
        return commit()["commit"]
