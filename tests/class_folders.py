"""Makes and loads a small data set in class folders."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import FolderData
from pipeline.data.datasets.load import load_splits

SIZE = 8


def pixels(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def make_class_folders(root: Path) -> Path:
    """Write classes a and b with three training and two test images each, as PNG: pixels are exact."""
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate("ab"):
            for number in range(count):
                save(
                    root / part / name / f"{number}.png", pixels(100 * (part == "test") + 10 * label + number)
                )
    return root


def load(root: Path, is_main: bool = True, **changes: object) -> Any:
    """Load the splits; `Any`, because cached parts have `images` and streamed parts have none."""
    values = {"root": str(root), "image_size": SIZE, **changes}
    return load_splits(FolderData.model_validate(values), 0, is_main=is_main)


def set_age(entry: Path, days: float) -> None:
    """Make an entry of the cache look as if no run had opened it for so many days."""
    then = time.time() - days * 24 * 3600
    os.utime(entry / "manifest.json", (then, then))


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".quickres").iterdir() if not path.name.startswith("scan-"))
