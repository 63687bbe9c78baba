"""Makes run folders for reports, and reads a page strictly."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.inference.predictions import Predictions
from pipeline.report.page import write_report

SECTIONS = ["curves", "classes", "calibration", "mistakes", "speed", "config", "environment", "command"]
VOID = {"meta", "img", "line", "circle", "path", "br"}
HOSTILE = "<script>alert('x')</script> & \"cat\""


class Page(HTMLParser):
    """Reads a page strictly: elements close in order, links lead somewhere, nothing comes from outside."""

    def __init__(self, path: Path):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open
        assert set(self.links) <= set(self.ids) and len(self.ids) == len(set(self.ids))
        assert "http:" not in self.source and "https:" not in self.source and "@import" not in self.source
        assert "script" not in self.tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute twice in {tag}"
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(str(values["id"]))
        if "href" in values:
            self.links.append(str(values["href"]).removeprefix("#"))
        assert str(values.get("src", "data:")).startswith("data:")
        assert tag != "img" or values.get("alt")
        assert tag != "svg" or values.get("aria-label")
        assert not any(name.startswith("on") for name in values)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def metrics(epochs: int = 4, scale: float = 1.0, skipped: int = 0) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        step = 10 * epoch
        train = {
            "loss": 2 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "lr": 0.1 / epoch,
            "images_per_sec": 900.0 + epoch,
            "steps_per_sec": 100.0,
        }
        records.append(
            {
                "kind": "train",
                "step": step,
                "epoch": epoch,
                **train,
                "loss_scale": scale,
                "skipped_steps": min(epoch, skipped),
            }
        )
        counts = {"correct": 5 + epoch, "seen": 12, "loss": 1 / epoch, "accuracy": (5 + epoch) / 12}
        records.append({"kind": "eval", "split": "test", "step": step, "epoch": epoch, **counts})
    return records


def predictions(
    classes: tuple[str, ...] = ("cat", "dog", "cow"), side: int = 8, maps: bool = True
) -> Predictions:
    rng = np.random.default_rng(0)
    labels = np.arange(12) % len(classes)
    logits = rng.normal(size=(12, len(classes))) + 2 * np.eye(len(classes))[labels]
    logits[:2] = -3 * np.eye(len(classes))[labels[:2]]  # two certain mistakes
    images = rng.integers(0, 255, (3, side, side, 3), dtype=np.uint8)
    evidence = rng.integers(0, 255, (3 if maps else 0, side, side), dtype=np.uint8)
    shown = {"shown": np.arange(3), "shown_names": np.array(["test/1.png", "test/2.png", ""])}
    return replace(Predictions.of(logits, labels, classes), **shown, images=images, maps=evidence)


RESULT = {
    "test_accuracy": 0.75,
    "test_correct": 9,
    "test_seen": 12,
    "best_test_accuracy": 0.75,
    "best_step": 40,
    "best_selected_on": "test",
    "test_loss": 0.25,
    "train_loss": 0.5,
    "num_parameters": 269722,
    "steps": 40,
    "images_per_sec": {"median": 902.0, "p10": 901.0, "p90": 904.0, "n": 4},
    "step_ms": 9.1,
    "data_wait_fraction": 0.2,
    "compile_s": 1.0,
    "train_s": 61.0,
    "wall_s": 90.0,
    "peak_memory_bytes": 2**30,
    "skipped_steps": 0,
    "recompilations": 0,
    "device": "cpu",
    "first_step_s": 2.0,
    "epochs": 4.0,
    "loader": "dali",
    "world_size": 1,
    "precision": "fp32",
    "batch_size": 8,
    "seed": 0,
}
ENVIRONMENT = {
    "command": ["./launch.sh", "configs/quickstart.yaml", "log.name=a b"],
    "python": "3.11",
    "packages": {"torch": "2.15"},
}


def make_run(folder: Path, name: str = "one", *, missing: tuple[str, ...] = (), **changes: Any) -> Path:
    """A run folder; CHANGES replace a part's content, MISSING parts are left out."""
    run = folder / name
    run.mkdir(parents=True)
    parts = {
        "config": {"data": {"dataset": "digits", "num_threads": 2}},
        "env": ENVIRONMENT,
        "result": RESULT,
        "metrics": metrics(),
    } | changes
    for part, suffix in (("config", "yaml"), ("env", "json"), ("result", "json"), ("metrics", "jsonl")):
        value = parts[part]
        if part == "config" and isinstance(value, dict):  # a run writes out every section
            value = {"seed": 0, "data": {}, "model": {}, "log": {}} | value
        if part not in missing:
            text = value if isinstance(value, str) else json.dumps(value)
            text = "".join(f"{json.dumps(record)}\n" for record in value) if isinstance(value, list) else text
            (run / f"{part}.{suffix}").write_text(text)
    if "predictions" not in missing:
        changes.get("predictions", predictions()).save(run)
    return run


def page_of(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0] / "report.html"))
