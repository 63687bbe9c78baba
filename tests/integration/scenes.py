"""Defines scenes of a run on several processes; every process runs the function of its scene."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline import train
from pipeline.config import Views
from pipeline.data import build_loaders, load_splits
from pipeline.distributed.gradient_averaging import GradientMean
from pipeline.distributed.processes import connect
from pipeline.models import build_model
from pipeline.training import step as step_module
from pipeline.training.evaluate import evaluate
from pipeline.training.precision import Precision
from pipeline.training.step import Step, StepOutput
from tests.tiny import RECIPE, tiny_config

Act = Callable[[], Any]


def before_step(number: int, act: Act) -> None:
    """Let this process act once, before its step NUMBER."""
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        if self._state.step == number - 1:
            act()
        return step(self, batch)

    Step.__call__ = watched


def fail() -> None:
    raise RuntimeError("a bug on one process")


def hang() -> None:
    Path(os.environ["RANKS_FOLDER"], "hanging").touch()
    time.sleep(600)


ACTS: dict[str, Act] = {
    "nothing": lambda: None,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fail": fail,
    "hang": hang,
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def plain_network() -> torch.nn.Module:
    """Return a network without batch norm."""
    torch.manual_seed(5)
    convolutions = [
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 16, 3, stride=2),
        torch.nn.ReLU(),
    ]
    return torch.nn.Sequential(
        *convolutions, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 4)
    )


# For 1, 2 and 3 processes: each trains the same batches.
SHARED = ("data.batch_size=12", "data.eval_batch_size=6", "duration=2ep", "log.eval_every=2ep")
NETWORKS = {
    "without batch norm": ("optimizer.lr=0.5",),
    "with synchronised batch norm": ("model.sync_batchnorm=true", "optimizer.lr=0.02"),
}


def train_all_networks(rank: int, folder: Path, *overrides: str) -> int:
    """Write to rank-R.pt, for each network: batches and rates of every step, evaluation counts, weights."""
    from pipeline import api

    results: dict[str, Any] = {}
    for name, keys in NETWORKS.items():
        config = api.load_config(RECIPE, [*SHARED, *keys, *overrides])
        splits = api.load_splits(config)
        model = api.build_model(config, splits)
        if name == "without batch norm":
            model = plain_network().to(next(model.parameters()).device)
        steps: list[dict[str, Any]] = []
        with watched_steps(steps):
            evaluation = api.fit(config, model, api.build_loaders(config, splits), quiet=True)
        weights = {
            key: value.cpu().contiguous()
            for key, value in model.state_dict().items()
            if value.is_floating_point()
        }
        results[name] = {
            "steps": steps,
            "seen": evaluation.seen,
            "correct": evaluation.correct,
            "weights": weights,
        }
    torch.save(results, folder / f"rank-{rank}.pt")
    return 0


@contextlib.contextmanager
def watched_steps(steps: list[dict[str, Any]]) -> Iterator[None]:
    step = Step.__call__

    def watched(self: Step, batch: Any) -> StepOutput:
        output = step(self, batch)
        values = {"indices": batch.indices, "images": batch.images, "labels": batch.labels}
        values["lr"] = self._state.lr
        noted: dict[str, Any] = {key: value.cpu().clone() for key, value in values.items()}
        steps.append({**noted, "captured": self._shape.graph is not None})
        return output

    Step.__call__ = watched
    try:
        yield
    finally:
        Step.__call__ = step


def run_and_note(rank: int, arguments: list[str], note: Path, number: int = 0) -> int:
    """Train, and write the samples of each step to NOTE-R.pt; process 0 gets a SIGTERM before step NUMBER."""
    steps: list[dict[str, Any]] = []
    if number and rank == 0:
        before_step(number, ACTS["terminate"])
    with watched_steps(steps):
        code = train.main(arguments)
    torch.save([step["indices"] for step in steps], f"{note}-{rank}.pt")
    return code


def run_and_note_mixing(rank: int, folder: Path, arguments: list[str]) -> int:
    """Train, and write to FOLDER/rank-R.pt what each step mixed: images, labels, shares."""
    notes: list[tuple[torch.Tensor, ...]] = []
    mix = step_module.mix

    def watched(*given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixed = mix(*given)
        notes.append(tuple(tensor.clone() for tensor in mixed))
        return mixed

    step_module.mix = watched
    try:
        return train.main(arguments)
    finally:
        step_module.mix = mix
        torch.save(notes, folder / f"rank-{rank}.pt")


def run(rank: int, arguments: list[str], number: int = 0, acts: dict[int, str] | None = None) -> int:
    """Train; the processes in ACTS act before step NUMBER."""
    if acts and rank in acts:
        before_step(number, ACTS[acts[rank]])
    return train.main(arguments)


def run_with_weights_of_its_own(rank: int, arguments: list[str], refusing: int) -> int:
    """Train from a file of weights that process REFUSING does not have."""
    weights = Path(os.environ["RANKS_FOLDER"], f"weights-{rank}.safetensors")
    if rank != refusing:
        save_file(build_model(tiny_config().model, 4).state_dict(), weights)
    return train.main([*arguments, f"model.weights={weights}"])


# Test-time views that one process and several evaluate.
VIEWS = (Views(), Views("mirror"), Views("mirror_shift", 0.4), Views("mirror", 0.05))


def evaluate_views(rank: int, folder: Path, *overrides: str) -> int:
    """Evaluate a random network on 27 images with all of VIEWS; write the results to rank-R.pt."""
    keys = ("data.num_samples=135", "data.eval_batch_size=8", *overrides)
    config = tiny_config(*keys)
    processes = connect(config)
    device = processes.device
    loader = build_loaders(config, load_splits(config.data, config.seed), device, processes.shard).test
    torch.manual_seed(5)
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 6 * 6, 4)]
    network = torch.nn.Sequential(*layers).to(device)
    precision = Precision(config.precision, device)
    results = [evaluate(network, loader, precision, device, views) for views in VIEWS]
    torch.save([asdict(result) for result in results], folder / f"rank-{rank}.pt")
    return 0


def average_gradients(rank: int, folder: Path, *overrides: str) -> int:
    """Average gradients of many layouts and odd sizes three times; write the results to rank-R.pt."""
    processes = connect(tiny_config(*overrides))
    with torch.device(processes.device):
        shapes = [(5, 3, 3, 3), (7,), (), (4, 6, 1, 1), (2, 9)]
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        parameters[0] = torch.nn.Parameter(parameters[0].detach().to(memory_format=torch.channels_last))
        frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        unused = torch.nn.Parameter(torch.zeros(3))
    mean, results = GradientMean([frozen, *parameters, unused]), []
    for number in range(3):
        for parameter in parameters:
            parameter.grad = None
        for part in (parameters[::2], parameters):  # the first pass has no gradient for some parameters
            terms = [(parameter * noise(parameter, rank, number)).sum() for parameter in part]
            torch.stack(terms).sum().backward()
        mean.average()
        assert frozen.grad is None and unused.grad is None
        assert all(
            parameter.grad is not None and parameter.grad.stride() == parameter.stride()
            for parameter in parameters
        )
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        results.append([gradient.cpu().clone() for gradient in gradients])
    torch.save(results, folder / f"rank-{rank}.pt")
    return 0


def noise(like: torch.Tensor, rank: int, number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + 10 * number + like.dim())
    return torch.randn(like.shape, generator=generator).to(like.device)
