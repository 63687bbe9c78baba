"""Share between the tests of training on a GPU: a stream of their own, and a small network in the step."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from pipeline.config import Config, load_config
from pipeline.data import Loader, build_loaders, load_splits
from pipeline.distributed.processes import connect
from pipeline.training.build import build_state, captures, set_backends
from pipeline.training.plan import Plan
from pipeline.training.step import Step

_SMALL = {
    "data.dataset": "synthetic",
    "data.num_samples": "2048",
    "data.batch_size": "64",
    "model.name": "resnet20",
    "optimizer.lr": "0.05",
    "runtime.deterministic": "true",
}


@pytest.fixture
def own_stream() -> Iterator[None]:
    """Run a test on a stream of its own: the captured step must not run on the default stream."""
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


@contextmanager
def no_synchronisation() -> Iterator[None]:
    """Raise a RuntimeError where the host waits for the device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls this mode a prototype, once a process
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def small_config(*overrides: str) -> Config:
    return load_config(
        overrides=[
            f"{key}={value}"
            for key, value in (_SMALL | dict(item.split("=", 1) for item in overrides)).items()
        ]
    )


def start(config: Config) -> tuple[Step, Loader]:
    """Return the step and the training loader before the first step."""
    set_backends(config)
    torch._dynamo.reset()
    processes = connect(config)
    splits = load_splits(config.data, config.seed)
    loaders = build_loaders(config, splits, processes.device, processes.shard)
    state = build_state(config, splits, processes)
    rates = [config.optimizer.lr] * len(state.optimizer.param_groups)
    plan = Plan.of(config, loaders.train.steps_per_epoch)
    step = Step(config, state, lambda _: rates, captures(config.compile, processes.device), plan)
    return step, loaders.train


def train(step: Step, loader: Loader, num_steps: int = 20) -> torch.Tensor:
    """Return the losses of NUM_STEPS steps, none of which is recompiled."""
    losses = [step(batch).loss.clone() for batch, _ in zip(loader, range(num_steps), strict=False)]
    assert len(losses) == num_steps and step.recompilations == 0
    return torch.stack(losses).cpu()
