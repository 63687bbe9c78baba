"""One folder for all that libraries keep between runs: compiled kernels, and matplotlib's list of fonts."""

import os
from pathlib import Path

from pipeline.errors import UserError

# Where each would go otherwise: /tmp/torchinductor_USER, ~/.triton, ~/.cache/torch/kernels, ~/.nv, ~/.config and ~/.cache/matplotlib
VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
}


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/quickres`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quickres"


def use_cache_folder() -> None:
    """Point the libraries there, but for those that the user has pointed elsewhere. Writes nothing.

    To be called before torch and matplotlib are imported: torch settles on a folder in /tmp as soon as its compiler is imported, which
    other libraries do, and matplotlib makes one in the home folder.
    """
    for variable, name in VARIABLES.items():
        os.environ.setdefault(variable, str(cache_folder() / name))
    os.environ.setdefault(
        "ORT_DISABLE_TELEMETRY", "1"
    )  # onnxruntime keeps an identifier of the machine and a log in ~/.cache and /tmp


def make_cache_folder() -> None:
    """Make the folder, so that one that cannot be written is known before training.

    Raises:
        UserError: it cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise UserError(
            f"XDG_CACHE_HOME: the cache folder {folder} cannot be written ({error.strerror}); point the environment variable "
            "XDG_CACHE_HOME to a folder that can, such as XDG_CACHE_HOME=/tmp/cache"
        ) from None
