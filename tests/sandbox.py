"""An empty home for a command, to see what it writes."""

import os
from pathlib import Path

from tests.tiny import ROOT

# Set by a test that ran before, or by the user; each would hide where things go by default.
CACHE_VARIABLES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "PYTORCH_KERNEL_CACHE_PATH",
    "CUDA_CACHE_PATH",
    "MPLCONFIGDIR",
)


def sandbox(folder: Path) -> dict[str, str]:
    """An environment whose home, temporary and working folders are empty ones below FOLDER."""
    for name in ("home", "tmp", "work"):
        (folder / name).mkdir(exist_ok=True)
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in CACHE_VARIABLES and not key.startswith("XDG_")
    }
    places = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**kept, **places, "OMP_NUM_THREADS": "1"}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
