"""Build the smallest runs that are still real: ResNet-20 on forty 8x8 images, and parts of such a run."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config, load_config
from pipeline.data import Batch, Splits, load_splits
from pipeline.distributed.processes import connect
from pipeline.run.checkpoint import EMA, load_weights, newest_intact
from pipeline.run.folder import RunFolder
from pipeline.run.lock import RunLock
from pipeline.run.records import EvalRecord, TrainRecord
from pipeline.run.resume import find_resumable, open_run
from pipeline.training.build import set_backends
from pipeline.training.trainer import Trainer

RECIPE = Path(__file__).with_name("tiny.yaml")
# keys of records that depend on the time, and so differ between two equal runs
TIME_DEPENDENT = ("images_per_sec", "steps_per_sec")


def tiny_config(*overrides: str) -> Config:
    return load_config(RECIPE, overrides)


def in_precision(mode: str, *fp16_keys: str) -> list[str]:
    """Return the keys of a precision; for fp16 also those of the loss scale.

    At the default scale the first steps do not overflow.
    """
    return [
        f"precision.mode={mode}",
        *((fp16_keys or ("precision.init_scale=1024.0",)) if mode == "fp16" else ()),
    ]


def tiny_splits(config: Config) -> Splits:
    return load_splits(config.data, config.seed)


def tiny_trainer(config: Config) -> Trainer:
    """Build a trainer on one process, without a run folder: it writes, prints and saves nothing."""
    set_backends(config)
    return Trainer.build(config, tiny_splits(config), connect(config))


def start(*overrides: str) -> Trainer:
    """Build the trainer of the config with these overrides."""
    return tiny_trainer(tiny_config(*overrides))


def open_and_release(config: Config) -> RunFolder:
    """Return a run folder as its process leaves it."""
    with RunLock() as lock:
        return open_run(config, "recipe", lock, find_resumable(config, lock))


def train_steps(trainer: Trainer, count: int) -> list[float]:
    """Run COUNT steps without the loop around them, and return the loss of each."""
    batches = trainer.loaders.train.batches_from(trainer.state.step)
    return [trainer.step(batch).loss.item() for batch in islice(batches, count)]


def a_train_record(step: int, loss: float | None = 0.5, **changes: Any) -> TrainRecord:
    """Return a record of training as a run writes it."""
    figures: dict[str, Any] = {
        "epoch": step / 5,
        "accuracy": 0.875,
        "lr": 0.05,
        "images_per_sec": None,
        "steps_per_sec": None,
        "loss_scale": 1.0,
        "skipped_steps": 0,
    }
    return TrainRecord(step=step, loss=loss, **(figures | changes))


def an_eval_record(step: int, loss: float = 0.5) -> EvalRecord:
    """Return a record of an evaluation as a run writes it."""
    return EvalRecord(split="test", step=step, epoch=step / 5, loss=loss, accuracy=0.75, correct=3, seen=4)


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
    """Return the records of a run, without the keys that depend on the time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIME_DEPENDENT} for record in records]


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint, damaged = newest_intact(run / "checkpoints")
    assert checkpoint is not None and not damaged
    return load_weights(checkpoint)


def last_ema(run: Path) -> dict[str, torch.Tensor]:
    """Return the moving average of the weights in the last checkpoint of a run; empty if there is none."""
    checkpoint, _ = newest_intact(run / "checkpoints")
    assert checkpoint is not None
    return load_weights(checkpoint, EMA) if (checkpoint / EMA).exists() else {}


def only_run(folder: Path) -> Path:
    """Return the one run folder in a `log.dir`."""
    (run,) = (path for path in folder.iterdir() if path.name != "latest")
    return run
