"""Defines the format of checkpoints, and finds, verifies and reads them.

A checkpoint is a folder: weights in safetensors, all other state in a file that
`torch.load(weights_only=True)` reads, and a manifest with checksums. Finding and verifying one needs no
torch, which is imported where tensors are handled.
"""

import pickle
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pipeline.atomic_io import parse_json, sha256
from pipeline.errors import UserError, first_line
from pipeline.run.folder import step_of
from pipeline.run.records import BestEvaluation

if TYPE_CHECKING:
    import torch

WEIGHTS, EMA, STATE, MANIFEST = "weights.safetensors", "ema.safetensors", "state.pt", "manifest.json"
FORMAT = 1


def map_tensors(value: Any, change: "Callable[[torch.Tensor], torch.Tensor]") -> Any:
    """Apply CHANGE to every tensor in a nested value."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


@dataclass
class Snapshot:
    """The content of a checkpoint: what `TrainState.snapshot` copies and `TrainState.restore` takes back.

    Attributes:
        step: optimizer steps done.
        weights: state dicts by file name: `WEIGHTS`, and `EMA` if there is a moving average.
        rest: all other state; tensors, numbers and strings only.
        best: the best evaluation so far; None before the first one.
        copied: on a GPU, the event after which the copies are complete.
    """

    step: int
    weights: "dict[str, dict[str, torch.Tensor]]"
    rest: dict[str, Any]
    best: BestEvaluation | None
    copied: "torch.cuda.Event | None" = None

    def to_cpu(self, stream: "torch.cuda.Stream | None") -> None:
        """Copy all tensors to the CPU, the weights contiguous; from a GPU on STREAM, beside training."""
        import torch

        with torch.cuda.stream(stream):
            if stream is not None and self.copied is not None:
                stream.wait_event(self.copied)
            self.weights = map_tensors(map_tensors(self.weights, torch.Tensor.cpu), torch.Tensor.contiguous)
            self.rest = map_tensors(self.rest, torch.Tensor.cpu)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def steps_in(checkpoints: Path) -> list[Path]:
    """Return the checkpoint folders, the newest first; those that were put aside are left out."""
    found = checkpoints.glob("step-*") if checkpoints.is_dir() else ()
    return sorted((path for path in found if ".later" not in path.name), reverse=True)


def _use_an_earlier_one(folder: Path) -> str:
    """Return the remedy for a checkpoint that cannot be used, with the keys that name another one."""
    earlier = [path for path in steps_in(folder.parent) if path < folder]
    step = next((step for path in earlier if (step := step_of(path.name)) is not None), None)
    if step is None:
        return "there is no earlier checkpoint: train again with resume=none"
    resume = shlex.quote(f"resume={folder.with_name(f'step-{step}')}")
    return f"use an earlier checkpoint: {resume} continues from it, --checkpoint step-{step} evaluates it"


class _Unusable(Exception):
    """A checkpoint is missing, damaged or foreign; the message names the file and no remedy."""


def verify(folder: Path, config_hash: str | None = None) -> dict[str, Any]:
    """Return the manifest of a checkpoint, after comparing all files with their checksums.

    Args:
        folder: of the checkpoint.
        config_hash: of the run; a checkpoint of another config is refused. None: not compared.

    Raises:
        UserError: names the file that is missing, foreign or damaged.
    """
    try:
        return _verified(folder, config_hash)
    except _Unusable as error:
        raise UserError(f"{error}; {_use_an_earlier_one(folder)}") from None


def _verified(folder: Path, config_hash: str | None) -> dict[str, Any]:
    try:
        manifest = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        _check_manifest(folder, manifest, config_hash)
        expected = dict(manifest["sha256"])
        for name in dict.fromkeys((WEIGHTS, STATE, *expected)):
            if sha256(folder / name) != expected[name]:
                raise _Unusable(f"{folder / name}: damaged (its SHA-256 is not the manifest's)")
    except FileNotFoundError as error:
        raise _Unusable(f"{error.filename}: missing from the checkpoint") from None
    except (OSError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise _Unusable(f"{folder / MANIFEST}: not a checkpoint's manifest ({reason})") from None
    return manifest


def _check_manifest(folder: Path, manifest: dict[str, Any], config_hash: str | None) -> None:
    if manifest["format"] != FORMAT:
        raise _Unusable(f"{folder}: checkpoint format {manifest['format']}, this version reads {FORMAT}")
    if folder_of(folder.parent, manifest["step"]) != folder:
        raise _Unusable(f"{folder}: holds step {manifest['step']} of another folder")
    if config_hash is not None and manifest["config_hash"] != config_hash:
        raise _Unusable(f"{folder}: saved by a run of another config, or by another version")


def newest_intact(checkpoints: Path, config_hash: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and a message for each newer one that does not."""
    damaged = []
    for folder in steps_in(checkpoints):
        try:
            _verified(folder, config_hash)
            return folder, damaged
        except _Unusable as error:
            damaged.append(str(error))
    return None, damaged


def load_weights(folder: Path, name: str = WEIGHTS) -> "dict[str, torch.Tensor]":
    """Read the weights, or with NAME `ema.safetensors` their moving average, to the CPU. Verify first.

    Raises:
        UserError: the file is not a safetensors file.
    """
    from safetensors.torch import load_file

    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / name}: cannot be read ({error}); {_use_an_earlier_one(folder)}") from None


def read_checkpoint(folder: Path, *, with_ema: bool) -> Snapshot:
    """Read a checkpoint into a snapshot on the CPU. Verify first.

    Args:
        folder: of the checkpoint.
        with_ema: read the moving average of the weights too.

    Raises:
        UserError: a file cannot be read; names it.
    """
    import torch

    weights = {name: load_weights(folder, name) for name in (WEIGHTS, *([EMA] if with_ema else []))}
    try:
        rest = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        best = BestEvaluation(**rest["best"]) if rest["best"] else None
        return Snapshot(rest["step"], weights, rest, best)
    except pickle.UnpicklingError:  # torch's message advises to run the code that it refused
        raise UserError(
            f"{folder / STATE}: not a training state, and may hold code, which is not run; "
            f"{_use_an_earlier_one(folder)}"
        ) from None
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise UserError(
            f"{folder / STATE}: does not hold a training state ({first_line(error)}); "
            f"{_use_an_earlier_one(folder)}"
        ) from None
