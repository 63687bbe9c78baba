"""Checks that only a batch of 1,024 images a GPU decides between our averaging of gradients and DDP."""

import argparse
from typing import Any

import pytest

from benchmarks.scaling import verdicts


@pytest.mark.parametrize(
    ("ratio", "batch", "on_gpu", "ending"),
    [
        (1.015, 2048, True, ": yes"),
        (1.014, 2048, True, ": no"),
        (1.2, 1024, True, "which this is not"),
        (1.2, 2048, False, "which this is not"),
    ],
)
def test_the_rule_is_for_gpus_and_one_batch(ratio: float, batch: int, on_gpu: bool, ending: str):
    record: Any = argparse.Namespace(batch_size=batch, world_size=2)
    assert verdicts._verdict(record, ratio, on_gpu=on_gpu).endswith(ending)
