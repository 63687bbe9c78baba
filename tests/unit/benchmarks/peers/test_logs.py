"""Tests the readers of the logs of others, with lines as their scripts print them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.peers.folder_program import LineLog, LogPatterns, RunLog, count_settings
from benchmarks.peers.quickres_train import QuickresLog
from benchmarks.peers.task import Task
from benchmarks.peers.timm_train import _LOG as TIMM
from benchmarks.peers.torchvision_reference import _LOG as TORCHVISION
from tests.unit.benchmarks.results import make_result

TASK = SimpleNamespace(workers=2, batch_size=10, full_steps=5)

# Lines, each with the seconds from the command. The workers are two: rounds of two steps.
_OF_TORCHVISION = (
    "Epoch: [{}]  [{:>2}/6]  eta: 0:00:25  lr: 0.1  img/s: 90.1  loss: 2.3 (2.3)  time: 1.0000  data: 0.9"
)
TORCHVISION_LOG = [
    (9.0, "Creating model"),
    *((12.0 + step // 2, _OF_TORCHVISION.format(0, step)) for step in range(6)),
    (15.0, "Epoch: [0] Total time: 0:00:04"),
    (
        15.5,
        "Test:   [0/4]  eta: 0:00:02  loss: 1.0 (1.0)  acc1: 50.0 (50.0)  acc5: 90.0  time: 0.5  data: 0.4",
    ),
    (16.0, "Test:  Total time: 0:00:01"),
    (16.1, "Test:  Acc@1 31.250 Acc@5 90.000"),
    *((18.0 + step // 2 / 2, _OF_TORCHVISION.format(1, step)) for step in range(6)),
    (20.5, "Epoch: [1] Total time: 0:00:04"),
    (21.0, "Test:  Acc@1 62.500 Acc@5 95.000"),
]
_OF_TIMM = "Train: {} [{:>4}/5 ( {}%)]  Loss: 2.3 (2.3)  Time: 2.000s,    8.0/s  (2.000s,  8.0/s)"
TIMM_LOG = [
    (5.0, "Model resnet50 created, param count:23528522"),
    *((8.0 + step // 2, _OF_TIMM.format(0, step, 20 * step + 20)) for step in range(5)),
    (
        10.5,
        "Test: [   0/1]  Time: 0.7 (0.7)  Acc@1:  50.000 ( 50.000)  Acc@5: 100.000 (100.000)",
    ),
    (
        11.0,
        "Test: [   1/1]  Time: 0.1 (0.4)  Acc@1: 100.000 ( 75.000)  Acc@5: 100.000 (100.000)",
    ),
    *((13.0 + step // 2 / 4, _OF_TIMM.format(1, step, 20 * step + 20)) for step in range(5)),
    (
        15.0,
        "Test: [   1/1]  Time: 0.1 (0.4)  Acc@1: 100.000 ( 87.500)  Acc@5: 100.000 (100.000)",
    ),
    (15.1, "*** Best metric: 87.5 (epoch 1)"),
]


def read(log: RunLog, lines: list[tuple[float, str]]) -> list[tuple[float, float, float | None]]:
    for at_s, line in lines:
        log.read(line + "\n", at_s)
    return [(epoch.accuracy, epoch.evaluated_s, epoch.images_per_sec) for epoch in log.epochs]


def new(patterns: LogPatterns, **more: int) -> LineLog:
    return LineLog(patterns, cast(Task, SimpleNamespace(**{**vars(TASK), **more})))


def test_torchvision_tells_the_time_of_whole_rounds_of_its_workers():
    """A round of two steps takes 1 s, and then half of it; the last batch, a smaller one, does not count."""
    log = new(TORCHVISION)
    assert read(log, TORCHVISION_LOG) == [(0.3125, 16.1, 20 / 1), (0.625, 21.0, 20 / 0.5)]
    assert log.parameters is None


def test_timm_tells_the_time_of_whole_rounds_and_the_parameters():
    log = new(TIMM)
    assert read(log, TIMM_LOG) == [(0.75, 11.0, 20 / 1), (0.875, 15.0, 20 / 0.25)]
    assert log.parameters == 23_528_522


def test_an_epoch_without_a_round_between_counts_from_its_first_step():
    assert [rate for *_, rate in read(new(TIMM, workers=3), TIMM_LOG)] == [40 / 2, 40 / 0.5]
    assert [rate for *_, rate in read(new(TIMM, full_steps=1), TIMM_LOG)] == [None, None]


def test_an_epoch_without_lines_of_training_has_no_speed():
    assert read(new(TORCHVISION), [(3.0, "Test:  Acc@1 10.000 Acc@5 50.000")]) == [(0.1, 3.0, None)]


def _window(step: int, pace: float | None) -> dict[str, object]:
    """Return a record of a log window that took PACE steps of 16 images a second."""
    rate = None if pace is None else 16 * pace
    return {
        "kind": "train",
        "step": step,
        "epoch": 0,
        "lr": 0.1,
        "images_per_sec": rate,
        "steps_per_sec": pace,
    }


def test_ours_tells_the_speed_between_evaluations(tmp_path: Path):
    """Two windows of 10 steps in 1 s and in 3 s are 20 steps of 16 images in 4 s."""
    evaluation = {"kind": "eval", "split": "test"} | dict.fromkeys(
        ("step", "epoch", "accuracy", "correct"), 0
    )
    evaluation["seen"] = 1
    records = [
        *(_window(10, None), _window(20, 10.0), evaluation),
        *(_window(30, 10.0), _window(40, 10 / 3), evaluation),
    ]
    run = tmp_path / "tiny-1"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "result.json").write_text(json.dumps(make_result().to_json()))
    log = QuickresLog()
    first = "epoch   1.00/2  train loss 1.0  warm-up  test loss 1.0 acc 25.00% (1/4)  left 0:09"
    second = "epoch   2.00/2  train all skipped  9 img/s  test loss 1.0 acc 75.00% (3/4)  left 0:00"
    last = "test accuracy 75.00% at the last step, best 75.00% (step 40)"
    read(log, [(7.0, first), (9.0, second), (9.1, last)])
    log.finish(tmp_path)
    assert [(e.accuracy, e.evaluated_s) for e in log.epochs] == [(0.25, 7.0), (0.75, 9.0)]
    assert [e.images_per_sec for e in log.epochs] == [None, pytest.approx(20 * 16 / 4)]
    assert log.parameters == 269_722


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["python", "train.py", "--lr", "0.1", "-j", "8", "--amp"], 3),
        (["./launch.sh", "configs/a.yaml", "data.root=/x=y", "seed=0"], 2),
        (["python", "train.py", "--weight-decay", "-1"], 1),
    ],
)
def test_settings_are_counted(words: list[str], settings: int):
    assert count_settings(words) == settings
