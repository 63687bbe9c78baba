"""Points libraries to one folder for what they keep between runs, such as compiled kernels."""

import os
from pathlib import Path

from pipeline.errors import UserError

# Default places otherwise: /tmp/torchinductor_USER, ~/.triton, ~/.cache/torch/kernels, ~/.nv,
# and ~/.config and ~/.cache/matplotlib for matplotlib's list of fonts
VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
}
COMPILE_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # of torch.compile


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/quickres`, by default in `~/.cache`.

    For a user without a home folder, as in containers, it is `quickres-UID` among the temporary files.
    """
    home, chosen = os.path.expanduser("~"), os.environ.get("XDG_CACHE_HOME")
    if chosen or os.path.isabs(home):
        return Path(chosen or f"{home}/.cache", "quickres")
    return Path(os.environ.get("TMPDIR") or "/tmp", f"quickres-{os.getuid()}")


def use_cache_folder() -> None:
    """Set the libraries' environment variables, except those that the user has set. Writes nothing.

    Call this before torch and matplotlib are imported: torch chooses a folder in /tmp as soon as its compiler
    is imported, which other libraries do, and matplotlib makes a folder in the home folder.
    """
    for variable, name in VARIABLES.items():
        os.environ.setdefault(variable, str(cache_folder() / name))
    # onnxruntime keeps an identifier of the machine and a log in ~/.cache and /tmp
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def make_cache_folder() -> None:
    """Make the folder, so that a folder that cannot be written is reported before training.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # among temporary files somebody else may have made it, and compiled code is loaded from there
        is_foreign = folder.name != "quickres" and folder.stat().st_uid != os.getuid()
        if is_foreign or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except OSError as error:
        raise UserError(
            f"XDG_CACHE_HOME: the cache folder {folder} cannot be written ({error.strerror}); set the "
            "environment variable XDG_CACHE_HOME to another folder, such as XDG_CACHE_HOME=/tmp/cache"
        ) from None
