"""The smallest runs that are still real ones: ResNet-20 on forty 8x8 images, and the parts of such a run without a folder."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, load_config
from pipeline.data import Batch, Splits, build_loaders, load_splits
from pipeline.distributed.processes import connect
from pipeline.distributed.watchdog import Watch
from pipeline.process.signals import StopSignal
from pipeline.run.checkpoint import EMA, load_weights, newest_intact
from pipeline.run.console import TrainingConsole
from pipeline.run.folder import RunFolder, open_run
from pipeline.run.lock import RunLock
from pipeline.training.build import build_state, captures, set_backends
from pipeline.training.clock import Clock
from pipeline.training.step import Step
from pipeline.training.trainer import Plan, Trainer

ROOT = Path(__file__).parents[1]
RECIPE = Path(__file__).with_name("tiny.yaml")
# What says when, how fast or where, and so differs between two equal runs.
TIME_DEPENDENT = ("images_per_sec", "steps_per_sec")


def tiny_config(*overrides: str) -> Config:
    return load_config(RECIPE, overrides)


def in_precision(mode: str, *fp16_keys: str) -> list[str]:
    """The keys of a precision; with fp16, of the loss scale too: by default one that the first steps do not overflow at."""
    return [
        f"precision.mode={mode}",
        *((fp16_keys or ("precision.init_scale=1024.0",)) if mode == "fp16" else ()),
    ]


def tiny_splits(config: Config) -> Splits:
    return load_splits(config.data, config.seed)


def tiny_trainer(config: Config) -> Trainer:
    """What `fit` works with, on one process and without a run folder: nothing is written, printed or saved."""
    set_backends(config)
    processes = connect(config)
    splits = tiny_splits(config)
    loaders = build_loaders(config, splits, processes.device, processes.shard)
    plan = Plan.of(config, loaders.train.steps_per_epoch)
    state = build_state(config, splits, processes)
    step = Step(config, state, plan.lr_at, captures(config.compile, processes.device))
    clock, console = Clock(processes.device), TrainingConsole(plan.total_steps, enabled=False)
    watch = Watch(processes, config.runtime.hang_timeout_s)
    return Trainer(
        config, processes, state, step, loaders, plan, clock, None, None, console, StopSignal(), watch
    )


def open_and_release(config: Config) -> RunFolder:
    """A run folder as its process leaves it."""
    with RunLock() as lock:
        return open_run(config, "recipe", lock)


def train_steps(trainer: Trainer, count: int) -> list[float]:
    """Run COUNT steps without the loop around them; the loss of each."""
    batches = trainer.loaders.train.batches_from(trainer.state.step)
    return [trainer.step(batch).loss.item() for batch in islice(batches, count)]


def random_batch(size: int = 8, image_size: int = 8, num_classes: int = 4, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, image_size, image_size, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.randint(num_classes, (size,), generator=generator)
    return Batch(images, labels, torch.ones(size, dtype=torch.bool), torch.arange(size))


def assert_equal(actual: Any, expected: Any, where: str = "") -> None:
    """Assert that two nested states are equal bit for bit."""
    assert type(actual) is type(expected), where
    match expected:
        case torch.Tensor():
            assert actual.dtype == expected.dtype and actual.device == expected.device, where
            assert torch.equal(actual, expected), where
        case dict():
            assert actual.keys() == expected.keys(), where
            for key in expected:
                assert_equal(actual[key], expected[key], f"{where}/{key}")
        case list() | tuple():
            assert len(actual) == len(expected), where
            for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
                assert_equal(one, other, f"{where}/{number}")
        case _:
            assert actual == expected, where


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run, without what depends on the time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIME_DEPENDENT} for record in records]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint, damaged = newest_intact(run / "checkpoints")
    assert checkpoint is not None and not damaged
    return load_weights(checkpoint)


def last_ema(run: Path) -> dict[str, torch.Tensor]:
    """The moving average of the weights in a run's last checkpoint; empty where there is none."""
    checkpoint, _ = newest_intact(run / "checkpoints")
    assert checkpoint is not None
    return load_weights(checkpoint, EMA) if (checkpoint / EMA).exists() else {}


def only_run(folder: Path) -> Path:
    """The one run folder in a `log.dir`."""
    (run,) = (path for path in folder.iterdir() if path.name != "latest")
    return run
