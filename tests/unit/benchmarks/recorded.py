"""Makes run folders, and records of them."""

import json
from pathlib import Path
from typing import Any

from benchmarks.__main__ import main
from benchmarks.measure.options import merge
from benchmarks.publish.records import Record, read
from pipeline.config import dump_config, load_config
from tests.python import ROOT
from tests.unit.benchmarks.results import make_result

NAME = "cifar10_resnet20"
RECIPE = ROOT / f"configs/{NAME}.yaml"
ON_A_FOLDER = ("data.dataset=folder", "data.root=data/jpeg")
DATA = ["--data", "CIFAR-10 in grey"]


def make_run(folder: Path, seed: int = 0, *overrides: str, commit: str = "a" * 40, **more: Any) -> Path:
    """Write a finished run; keywords change entries of env.json, or else of result.json."""
    path = folder / f"{NAME}-20260101-00000{seed}"
    path.mkdir(parents=True)
    keys = merge(ON_A_FOLDER, [f"seed={seed}", f"log.dir={folder}"], overrides)
    (path / "config.yaml").write_text(dump_config(load_config(RECIPE, keys)))
    environment = {
        "command": ["python", "-m", "pipeline.train", f"configs/{NAME}.yaml", *keys],
        "utc": f"2026-01-01T00:00:0{seed}+00:00",
        "commit": commit,
        "dirty": False,
        "python": "3.12.3",
        "cpu_cores": 16,
        "packages": {"torch": "2.11.0", "nvidia-dali-cuda120": "2.4.0"},
        "world_size": 1,
        "device": "cuda",
        "gpu": {"name": "NVIDIA H200", "count": 1, "driver": "580.1", "power_limit_w": 700.0, "cuda": "13.0"},
    }
    speed = 40_000.0 + 1000 * seed
    result = make_result(
        test_accuracy=0.91 + 0.002 * seed,
        test_accuracy_flip_tta=0.92,
        images_per_sec={"median": speed, "p10": 0.95 * speed, "p90": 1.05 * speed, "n": 9},
        train_s=206.0 + seed,
        peak_memory_bytes=2**28 + seed,
        seed=seed,
    ).to_json()
    for key, value in more.items():
        (environment if key in environment or key == "continued" else result)[key] = value
    for name, contents in (
        ("env", environment),
        ("result", result),
        ("input", {"mean": [0.5], "image_size": 32, "crop": None}),
    ):
        (path / f"{name}.json").write_text(json.dumps(contents))
    return path


def recorded(results: Path, *arguments: Any) -> Record:
    assert main(["recipes", *map(str, arguments), *DATA, "--record"]) == 0
    return read(results)[-1]
