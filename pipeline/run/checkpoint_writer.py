"""Writes checkpoints in a thread; each of them is whole, or is not there at all."""

import io
import json
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from pipeline.atomic_io import flush_to_disk, follow_umask, sha256, write_json
from pipeline.errors import TrainingError
from pipeline.run.checkpoint import FORMAT, MANIFEST, STATE, Snapshot, folder_of, steps_in
from pipeline.run.folder import BEST

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"step-\d{8,}")


class CheckpointWriter:
    """Writes snapshots in a thread, beside training.

    The newest `keep` checkpoints and the best one are kept; `best.json` names the best.

    Args:
        checkpoints: the folder to write in.
        config_hash: of the run, kept in the manifest.
        keep: newest checkpoints to keep.
    """

    def __init__(self, checkpoints: Path, config_hash: str, keep: int = 2):
        self._folder, self._config_hash, self._keep = checkpoints, config_hash, keep
        self._pending: Future[None] | None = None
        # one stream for all saves: torch has a pool of 32 and hands them out in turn, training's stream too
        self._stream: torch.cuda.Stream | None = None

    def save(self, snapshot: Snapshot) -> None:
        """Write the snapshot in the thread. Waits for the write before, and raises its error."""
        self.wait()
        if self._stream is None and snapshot.copied is not None:
            import torch

            self._stream = torch.cuda.Stream()
        # A thread for each write: one that stayed would keep threads of OpenMP. If there are more than cores,
        # those of training no longer spin before they sleep, which halves its speed on a CPU.
        executor = ThreadPoolExecutor(1, "checkpoint")
        self._pending = executor.submit(self._write, snapshot)
        executor.shutdown(wait=False)

    def check(self) -> None:
        """Raise the error of a write that has ended, without waiting for one that has not."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last snapshot is on disk.

        Raises:
            TrainingError: the snapshot could not be written (disk full, folder gone); names the folder.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self._folder}: the checkpoint could not be written ({error}); free space or mend "
                "the folder, then start again with resume=auto; earlier checkpoints are untouched"
            ) from None

    def close(self) -> None:
        self.wait()

    def _write(self, snapshot: Snapshot) -> None:
        snapshot.to_cpu(self._stream)
        for abandoned in self._folder.glob(".step-*.tmp"):  # of a run that was killed while it wrote
            shutil.rmtree(abandoned, ignore_errors=True)
        # without parents: a run folder that was deleted must not come back in parts
        self._folder.mkdir(exist_ok=True)
        final = folder_of(self._folder, snapshot.step)
        temporary = self._folder / f".{final.name}.tmp"
        temporary.mkdir()
        try:
            self._write_files(temporary, snapshot)
            self._replace(final, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        best = snapshot.best
        if best is not None:
            # written each time: after a return to an earlier checkpoint the best one is an earlier one too
            write_json(self._folder / BEST, best.to_json())
        self._prune(final, best.step if best is not None else -1)

    def _write_files(self, folder: Path, snapshot: Snapshot) -> None:
        """Write all files of a checkpoint, and bring them to the disk."""
        import torch
        from safetensors.torch import save_file

        for name, tensors in snapshot.weights.items():
            save_file(tensors, folder / name)
            follow_umask(folder / name)
        state = io.BytesIO()  # torch.save to a path hides the OSError of a full disk
        torch.save(snapshot.rest, state)
        (folder / STATE).write_bytes(state.getbuffer())
        checksums = {name: sha256(folder / name) for name in (*snapshot.weights, STATE)}
        manifest = {
            "format": FORMAT,
            "step": snapshot.step,
            "config_hash": self._config_hash,
            "sha256": checksums,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in [*folder.iterdir(), folder]:
            flush_to_disk(path)

    def _replace(self, final: Path, temporary: Path) -> None:
        """Give the checkpoint its name. The step may have been saved before, if the run went back to an
        earlier one."""
        aside = self._folder / f".{final.name}.old.tmp"
        if final.exists():
            final.rename(aside)
        temporary.rename(final)
        flush_to_disk(self._folder)
        shutil.rmtree(aside, ignore_errors=True)

    def _prune(self, newest: Path, best_step: int) -> None:
        """Delete old checkpoints, and later ones that the run went back past because they were damaged. Other
        files stay."""
        saved = [path for path in steps_in(self._folder) if _NAME.fullmatch(path.name) and path.is_dir()]
        kept = [newest, *(path for path in saved if path < newest)][: self._keep]
        for path in saved:
            if path not in (*kept, folder_of(self._folder, best_step)):
                shutil.rmtree(path)
