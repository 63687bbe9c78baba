"""Describes a run's command, code, packages and hardware, so that others can repeat it or doubt it."""

import contextlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.process.command_line import command_line
from pipeline.process.cores import usable_cores

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch",
    "torchvision",
    "triton",
    "accelerate",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "numpy",
    "safetensors",
    "grad-cam",
)


def output_of(*command: str) -> str | None:
    """Return the output of a command; None if it fails or does not exist."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def ask_nvidia_smi(device: "torch.device", fields: str) -> str:
    """Return values of a GPU, separated by `, `; an empty text if nvidia-smi does not answer.

    Args:
        device: a GPU as torch counts it. nvidia-smi does not know `CUDA_VISIBLE_DEVICES`.
        fields: names of `nvidia-smi --help-query-gpu`, separated by commas.
    """
    import torch

    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    options = (f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return output_of("nvidia-smi", f"--id={gpu}", *options) or ""


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def commit() -> dict[str, Any]:
    """Return the commit of the checkout, and True in `dirty` if the checkout has uncommitted changes.

    Without git, as in a container, `QUICKRES_COMMIT` holds both (`<hash>` or `<hash>-dirty`). Without either,
    both are None.
    """
    value = os.environ.get("QUICKRES_COMMIT")
    if value:
        return {"commit": value.removesuffix("-dirty"), "dirty": value.endswith("-dirty")}
    status = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": output_of("git", "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
    }


def describe_environment(config: Config, device: "torch.device", world_size: int) -> dict[str, Any]:
    """Return command, commit, versions, hardware and backend switches of this run."""
    return {
        "command": command_line(),
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": usable_cores(),
        "packages": _versions(),
        "world_size": world_size,
        "device": device.type,
        "gpu": _describe_gpu(device) if device.type == "cuda" else None,
        "deterministic": config.runtime.deterministic,
        "tf32": config.runtime.tf32,
        "cudnn_benchmark": config.runtime.cudnn_benchmark,
    }


def _describe_gpu(device: "torch.device") -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    driver, _, power = ask_nvidia_smi(device, "driver_version,power.limit").partition(", ")
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver or None,
        "power_limit_w": float(power) if power.replace(".", "").isdigit() else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
