"""Checks, on every process of `test_processes.py`, what needs several processes; then trains.

`torchrun … tests/integration/two_processes.py FOLDER STOP CONFIG key=value…`: writes FOLDER/rank-R.json with
what this process saw.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    warnings.simplefilter("error")  # before torch is imported

import torch

from pipeline import train
from pipeline.config import load_config
from pipeline.distributed.processes import Processes, average_batch_norm, connect
from pipeline.errors import UserError
from pipeline.training.step import Step, StepOutput


def error_of(work: Callable[[], Any]) -> str:
    try:
        return f"returned {work()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fail(error: Exception) -> Any:
    raise error


def check_agreement(processes: Processes) -> dict[str, Any]:
    """Return the results and errors of one process, as all processes get them."""
    rank = processes.shard.rank
    ran: list[str] = []
    return {
        "on_main": error_of(lambda: processes.on_main(lambda: f"made by {rank}")),
        "on_main_user_error": error_of(lambda: processes.on_main(lambda: fail(UserError("bad key")))),
        "on_main_bug": error_of(lambda: processes.on_main(lambda: fail(KeyError("a bug")))),
        "main_first": error_of(lambda: processes.main_first(lambda: f"made by {rank}")),
        "main_first_on_0": error_of(
            lambda: processes.main_first(
                lambda: fail(UserError("bad file")) if rank == 0 else ran.append("ran")
            )
        ),
        "main_first_on_1": error_of(
            lambda: processes.main_first(lambda: fail(UserError("only here")) if rank == 1 else "fine")
        ),
        "main_first_bug_on_1": error_of(
            lambda: processes.main_first(lambda: fail(OSError("no disk")) if rank == 1 else "fine")
        ),
        "ran_after_error": ran,
        "sum": processes.sum(torch.tensor([1.0, rank])).tolist(),
        "norm": average_norm(rank),
    }


def average_norm(rank: int) -> list[float]:
    norm = torch.nn.BatchNorm2d(2)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.fill_(rank)
    norm.running_var.fill_(3 * rank + 1)
    average_batch_norm(torch.nn.Sequential(norm))
    return [norm.running_mean[0].item(), norm.running_var[1].item()]


def watch_steps(stop: int, rank: int) -> list[dict[str, Any]]:
    """Record each step's output; process 1 gets a SIGTERM after step STOP, or fails after step -STOP."""
    seen: list[dict[str, Any]] = []
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        if rank == 1 and self._state.step == stop > 0:
            os.kill(os.getpid(), signal.SIGTERM)
        output = step(self, batch)
        weights = sum(
            parameter.detach().double().sum().item() for parameter in self._state.model.parameters()
        )
        counted = {"loss": output.loss.item(), "correct": output.correct.item()}
        seen.append({**counted, "weights": weights, "indices": batch.indices.tolist()})
        if rank == 1 and self._state.step == -stop:
            raise RuntimeError("a bug on one process")
        return output

    Step.__call__ = watched
    return seen


def main(rank: int, folder: Path, stop: int, arguments: list[str]) -> int:
    report: dict[str, Any] = {"steps": watch_steps(stop, rank)}
    report |= check_agreement(connect(load_config(arguments[0], arguments[1:])))
    report["code"] = train.main(arguments)
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    return report["code"]


if __name__ == "__main__":
    sys.exit(main(int(os.environ["RANK"]), Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
