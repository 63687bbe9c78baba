"""Tests parts of the benchmarks: windows, the naive graph of DALI, and the name of the bottleneck."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.measure import timing
from benchmarks.measure.bottleneck import Measured, name_bottleneck
from benchmarks.measure.options import QUICK, merge
from benchmarks.measure.timing import Workload, time_interleaved
from benchmarks.publish.records import Spread
from benchmarks.suites.loaders import build_naive
from pipeline.config import load_config
from pipeline.data import build_loaders, load_splits
from pipeline.distributed.processes import connect

QUICKSTART = "configs/quickstart.yaml"


class Noted(Workload):
    """A workload that notes its steps and moves a clock."""

    def __init__(self, name: str, notes: list[str], clock: SimpleNamespace, seconds: float):
        super().__init__(name, images_per_step=10, lead_in=2)
        self.notes, self.clock, self.seconds = notes, clock, seconds

    def run(self, steps: int) -> None:
        self.notes.append(f"{self.name}{steps}")
        self.clock.now += steps * self.seconds


def test_windows_are_interleaved_and_compared_in_pairs(monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    workloads = [Noted("a", notes, clock, 0.01), Noted("b", notes, clock, 0.02)]
    fast, slow = time_interleaved(workloads, windows=3, steps=4, device=torch.device("cpu"))
    assert notes == ["a2", "a1", "b2", "b1"] + ["a2", "a4", "b2", "b4"] * 3
    assert fast.images_per_sec.n == 3
    assert fast.images_per_sec.median == pytest.approx(1000)
    assert fast.against(slow).variant == "b"
    assert fast.against(slow).ratio.median == pytest.approx(2)


@pytest.mark.parametrize(
    "overrides", [(), ("augment.cutout=0",), ("augment.crop_padding=0", "precision.mode=fp32")]
)
def test_the_naive_graph_gives_the_same_pixels(overrides: tuple[str, ...]):
    config = load_config(
        QUICKSTART,
        merge(QUICK, ["augment.flip=true", "precision.mode=fp16", "runtime.device=cpu"], overrides),
    )
    splits, processes = load_splits(config.data, config.seed), connect(config)
    naive, ours = (
        build_naive(config, splits, processes),
        build_loaders(config, splits, processes.device).train,
    )
    for _ in range(2):
        for one, other in zip(naive, ours, strict=True):
            assert torch.equal(one.labels, other.labels)
            torch.testing.assert_close(
                one.images, other.images, rtol=0, atol=2e-3
            )  # one unit in the last place of half precision


NOTHING = Spread(median=1.0, p10=0.99, p90=1.01, n=5)
BASE: dict[str, Any] = {
    "loader": 3e5,
    "step": 1e5,
    "end_to_end": 1e5,
    "ratio": NOTHING,
    "alone": 1e5,
    "host_ms": 0.1,
    "step_ms": 5.0,
    "peak_share": 0.4,
    "compile_mode": "reduce-overhead",
    "on_gpu": True,
    "streamed": False,
}
STREAMED = ["data.dataset=folder", "data.root=images", "data.image_size=224"]
SLOWED = Spread(median=0.5, p10=0.49, p90=0.51, n=5)


@pytest.mark.parametrize(
    ("measured", "overrides", "bottleneck", "key"),
    [
        (
            {"loader": 5e4, "end_to_end": 5e4, "ratio": SLOWED},
            ["data.loader=reference"],
            "the loader",
            "data.loader=dali",
        ),
        (
            {"loader": 5e4, "end_to_end": 5e4, "ratio": SLOWED, "on_gpu": False},
            [],
            "the loader",
            "data.num_threads",
        ),
        ({"loader": 9e4}, [], "the loader", "data.loader=fused"),
        ({"end_to_end": 5e4, "ratio": SLOWED}, [], "competition", "data.loader=fused"),
        (
            {"loader": 9e4, "streamed": True},
            ["data.decoder=cpu", *STREAMED],
            "the loader",
            "or try data.decoder=gpu.",
        ),
        ({"ratio": Spread(median=0.5, p10=0.2, p90=1.2, n=5)}, [], "memory traffic", "data.batch_size"),
        ({"ratio": Spread.of([0.9])}, [], "memory traffic", "data.batch_size"),
        ({"alone": 2e5}, [], "communication", "data.batch_size"),
        ({"host_ms": 4.9, "compile_mode": "default"}, [], "the host", "compile.mode=reduce-overhead"),
        ({"host_ms": 4.9}, [], "the host", "data.batch_size"),
        ({"peak_share": 0.8}, [], "arithmetic", "model.name"),
        ({"peak_share": 0.8}, ["precision.mode=fp32"], "arithmetic", "precision.mode=fp16"),
        ({}, ["precision.mode=fp32"], "memory traffic", "precision.mode=fp16"),
        ({}, ["runtime.channels_last=false"], "memory traffic", "runtime.channels_last=true"),
        ({"compile_mode": "none"}, [], "memory traffic", "compile.mode=reduce-overhead"),
    ],
)
def test_the_bottleneck_is_named_with_its_key(
    measured: dict[str, Any], overrides: list[str], bottleneck: str, key: str
):
    sentence = name_bottleneck(Measured(**(BASE | measured)), load_config(overrides=overrides))
    assert sentence.startswith("Bottleneck: ")
    assert bottleneck in sentence
    assert key in sentence
