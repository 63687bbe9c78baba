"""Checkpoints: raw weights in safetensors, the rest loadable with `weights_only`, a manifest with checksums; whole or not there."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import TrainingError, UserError
from pipeline.state import TrainState

WEIGHTS, EMA, STATE, MANIFEST = "weights.safetensors", "ema.safetensors", "state.pt", "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-\d{8,}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _map(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The nested value with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map(item, change) for item in value)
    return value


class _Snapshot:
    """A copy of a state that later training steps leave alone.

    It is made on the state's own device, which on a GPU costs training next to nothing (and the memory of the copy, for a moment); `read`,
    in another thread, brings it to the CPU on another stream while training goes on.
    """

    def __init__(self, state: TrainState):
        models = {WEIGHTS: state.model} | ({EMA: state.ema.model} if state.ema is not None else {})
        self.step, self.best = state.step, dict(state.best)
        everything = {"weights": {name: model.state_dict() for name, model in models.items()}, "rest": state.state_dict()}
        self._copy = _map(everything, lambda tensor: tensor.detach().clone())
        self._copied = torch.cuda.Event() if state.totals.values.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self, stream: torch.cuda.Stream | None) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """Weights by file, contiguous, and the rest, on the CPU; from a GPU, on this stream."""
        with torch.cuda.stream(stream):
            if stream is not None and self._copied is not None:
                stream.wait_event(self._copied)
            read = _map(self._copy, torch.Tensor.cpu)
        del self._copy
        return _map(read["weights"], torch.Tensor.contiguous), read["rest"]


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


class CheckpointWriter:
    """Saves snapshots of a state beside training: copied at once, read off the device and written by a thread.

    Keeps the newest `keep` checkpoints and the best one; `best.json` names the latter.

    Args:
        checkpoints: the folder to write in.
        config_hash: of the run, kept in the manifest.
        keep: newest checkpoints to keep.
    """

    def __init__(self, checkpoints: Path, config_hash: str, keep: int = 2):
        self._folder, self._config_hash, self._keep = checkpoints, config_hash, keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._stream: torch.cuda.Stream | None = None  # one for all: torch has 32, and would soon hand out that of training itself

    def save(self, state: TrainState) -> None:
        """Snapshot the state now and write it soon. Waits for the write before; raises what went wrong in that."""
        self.wait()
        if self._stream is None and state.totals.values.is_cuda:
            self._stream = torch.cuda.Stream(state.totals.values.device)
        self._pending = self._executor.submit(self._write, _Snapshot(state))

    def check(self) -> None:
        """Raise what went wrong in a write that has ended, as `wait` does; wait for none."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            TrainingError: it could not be written (disk full, folder gone); names the folder.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self._folder}: the checkpoint could not be written ({error}); free space or mend the folder, "
                "and start again with resume=auto: earlier checkpoints are untouched"
            ) from None

    def close(self) -> None:
        self.wait()
        self._executor.shutdown()

    def _write(self, snapshot: _Snapshot) -> None:
        weights, rest = snapshot.read(self._stream)
        step, best = snapshot.step, snapshot.best
        final = folder_of(self._folder, step)
        temporary, aside = (self._folder / f".{final.name}.{suffix}" for suffix in ("tmp", "old.tmp"))
        for abandoned in self._folder.glob(".step-*.tmp"):  # by a run that was killed while it wrote
            shutil.rmtree(abandoned, ignore_errors=True)
        self._folder.mkdir(exist_ok=True)  # not its parents: a run folder that has gone is not to come back in parts
        temporary.mkdir()
        try:
            for name, tensors in weights.items():
                save_file(tensors, temporary / name)
            state = io.BytesIO()  # given a path, torch tells of a full disk in words of its own
            torch.save(rest, state)
            (temporary / STATE).write_bytes(state.getbuffer())
            files = {name: _sha256(temporary / name) for name in (*weights, STATE)}
            manifest = {"format": FORMAT, "step": step, "config_hash": self._config_hash, "sha256": files}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            for path in [*temporary.iterdir(), temporary]:
                _flush_to_disk(path)
            if final.exists():  # reached again after going back to an earlier one
                final.rename(aside)
            temporary.rename(final)
            _flush_to_disk(self._folder)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if best:  # always: a run that went back to an earlier checkpoint goes back to the best one of then
            write_json(self._folder / "best.json", best)
        self._prune(final, best.get("step", -1))

    def _prune(self, newest: Path, best_step: int) -> None:
        """Delete old ones, and those that lie ahead: the run went back past them, because they were damaged. Others' files stay."""
        saved = [path for path in steps_in(self._folder) if _NAME.fullmatch(path.name) and path.is_dir()]
        kept = [newest, *(path for path in saved if path < newest)][: self._keep]
        for path in saved:
            if path not in (*kept, folder_of(self._folder, best_step)):
                shutil.rmtree(path)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all.

    Raises:
        OSError: with the path.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        _flush_to_disk(temporary)  # a name that a power cut leaves without its content would pass for a finished run
        temporary.replace(path)
    except OSError as error:  # a full disk is noticed in writing, which knows no names
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def steps_in(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    return sorted(checkpoints.glob("step-*"), reverse=True) if checkpoints.is_dir() else []


def verify(folder: Path, config_hash: str | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint whose files match it.

    Args:
        folder: of the checkpoint.
        config_hash: of the run; where given, a checkpoint of another one is foreign.

    Raises:
        UserError: names the file that is missing, foreign or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = dict(manifest["sha256"])
        if manifest["format"] != FORMAT:
            raise UserError(f"{folder}: checkpoint format {manifest['format']}, this version reads {FORMAT}")
        if folder_of(folder.parent, manifest["step"]) != folder:
            raise UserError(f"{folder}: holds step {manifest['step']} of another folder; use an earlier checkpoint")
        if config_hash is not None and manifest["config_hash"] != config_hash:
            raise UserError(f"{folder}: saved by a run of another config, or by another version; use an earlier checkpoint")
        for name in dict.fromkeys((WEIGHTS, STATE, *expected)):
            if _sha256(folder / name) != expected[name]:
                raise UserError(f"{folder / name}: damaged (its SHA-256 is not the manifest's); use an earlier checkpoint")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: missing from the checkpoint; use an earlier one") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder / MANIFEST}: not a manifest of ours ({type(error).__name__}: {error}); use an earlier checkpoint"
        ) from None
    return manifest


def newest_intact(checkpoints: Path, config_hash: str | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a message for each newer one that does not."""
    damaged = []
    for folder in steps_in(checkpoints):
        try:
            verify(folder, config_hash)
            return folder, damaged
        except UserError as error:
            damaged.append(str(error))
    return None, damaged


def load_weights(folder: Path, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
    """The raw module's weights, or with NAME `ema.safetensors` their moving average, on the CPU. Verify first.

    Raises:
        UserError: the file is no safetensors file.
    """
    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder / name}: cannot be read ({error}); use an earlier checkpoint") from None


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Restore a state from a checkpoint, on any device and number of processes. Verify first.

    Raises:
        UserError: the checkpoint cannot be read, or is one of another model.
    """
    try:
        state.model.load_state_dict(load_weights(folder))
        if state.ema is not None:
            state.ema.model.load_state_dict(load_weights(folder, EMA))
        state.load_state_dict(torch.load(folder / STATE, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:  # torch's words advise to run the code that it refused
        raise UserError(f"{folder / STATE}: not a state of ours, and may hold code, which is not run; use an earlier checkpoint") from None
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, EOFError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: does not fit this config's model and optimizer ({reason}); give the run's own config") from None
