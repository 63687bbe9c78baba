"""Give a command an empty home folder, so that a test sees the files that it writes."""

import os
from pathlib import Path

from tests.python import ROOT

# an earlier test or the user may have set them: they would hide the default folders
CACHE_VARIABLES = (
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "PYTORCH_KERNEL_CACHE_PATH",
    "CUDA_CACHE_PATH",
    "MPLCONFIGDIR",
)


def sandbox(folder: Path) -> dict[str, str]:
    """Return an environment whose home, temporary and working folders are empty folders in FOLDER."""
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
