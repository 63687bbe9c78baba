"""Opens a run folder: makes a new one, or finds the one that `resume` means."""

import os
import shutil
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline.atomic_io import put_aside, write_whole
from pipeline.config import Config, computed_values, config_hash, dump_config, hash_of_run, path_of
from pipeline.errors import UserError, first_line
from pipeline.run.checkpoint import newest_intact, steps_in, verify
from pipeline.run.folder import RunFolder, find_run
from pipeline.run.lock import RunIsBusy, RunLock
from pipeline.run.named_checkpoint import named_checkpoint, split_path

_MOST_IN_ONE_SECOND = 1000


@dataclass(frozen=True)
class Found:
    """The run that `resume` means.

    Attributes:
        run: the folder with the checkpoint to continue from; None if a new run is to be made.
        warnings: folders that were skipped, and damaged checkpoints of runs that have no intact one.
    """

    run: RunFolder | None = None
    warnings: tuple[str, ...] = ()


def open_run(config: Config, recipe: str, lock: RunLock, found: Found) -> RunFolder:
    """Make the folder of a new run, or go on in the one that was found. Nothing was written before.

    Rank 0 calls this once nothing refuses the run any more, and sends the result to the others.

    Args:
        config: of the run.
        recipe: names a new run.
        lock: taken for a new folder; of an old one it is held already.
        found: what `find_resumable` returned.

    Raises:
        UserError: `log.dir` cannot be written.
    """
    if found.run is not None:
        _point_latest(found.run.path.parent, found.run.path)
        renamed = _clear_the_places_of_files(found.run)
        if split_path(path_of("resume", config.resume))[1] is not None:
            renamed += _put_aside_later_checkpoints(found.run)
        return replace(found.run, warnings=(*found.warnings, *found.run.warnings, *renamed))
    new_run = (
        "resume=auto: found no unfinished run with this config and a valid checkpoint; starting a new run"
    )
    warnings = (*found.warnings, new_run) if config.resume == "auto" else ()
    return RunFolder(_make_folder(config, recipe, lock), warnings=warnings)


def find_resumable(config: Config, lock: RunLock | None = None) -> Found:
    """Find the run folder that `resume` means. Nothing is written but the lock file.

    Args:
        config: of the run.
        lock: taken for the folder; without one nothing is written at all.

    Raises:
        UserError: the run to resume does not exist, is finished, has another config, is being trained, or has
            no intact checkpoint.
    """
    if config.resume == "auto":
        return _newest_unfinished(config, lock)
    return Found(
        None if config.resume == "none" else _named_run(config, path_of("resume", config.resume), lock)
    )


def _clear_the_places_of_files(run: RunFolder) -> list[str]:
    """Rename what stands in the place of a file that the run will write. Return a warning for each.

    Such a folder would end the run at the next checkpoint, or after training.
    """
    files = (run.environment, run.inputs, run.metrics, run.result, run.best)
    wrong = [file for file in files if file.is_dir()]
    if run.tensorboard.exists() and not run.tensorboard.is_dir():
        wrong.append(run.tensorboard)
    return [f"{path}: is not what a run writes there; renamed to {put_aside(path).name}" for path in wrong]


def _put_aside_later_checkpoints(run: RunFolder) -> list[str]:
    """Rename the checkpoints after the one that the user named. Return a warning if there are any.

    Otherwise the next `resume=auto` would go on from them.
    """
    assert run.resume_from is not None
    later = [path for path in steps_in(run.checkpoints) if path.is_dir() and path > run.resume_from]
    for path in reversed(later):
        put_aside(path, "later")
    if not later:
        return []
    names = ", ".join(path.name for path in reversed(later))
    return [f"{run.checkpoints}: later checkpoints are put aside as NAME.later: {names}"]


def _make_folder(config: Config, recipe: str, lock: RunLock) -> Path:
    runs, name = path_of("log.dir", config.log.dir), config.log.name or recipe
    path = None
    try:
        runs.mkdir(parents=True, exist_ok=True)
        path = _new_folder(runs, f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        lock.take(path)
        write_whole(RunFolder(path).config, dump_config(config))
        _point_latest(runs, path)
    except (OSError, UserError) as error:
        if path is not None:  # what was refused leaves nothing
            lock.release()
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"log.dir: {error.filename or runs} cannot be written ({error.strerror}); "
            "choose another folder with log.dir="
        ) from None
    return path


def _new_folder(runs: Path, name: str) -> Path:
    for attempt in range(_MOST_IN_ONE_SECOND):
        path = runs / (f"{name}-{attempt}" if attempt else name)
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise UserError(f"{runs}: holds {_MOST_IN_ONE_SECOND} runs named {name}; set log.name")


def _point_latest(runs: Path, path: Path) -> None:
    latest, link = runs / "latest", runs / f".latest-{os.getpid()}"
    if latest.exists() and not latest.is_symlink():
        raise UserError(
            f"{latest}: is a {'folder' if latest.is_dir() else 'file'}, but the link to the newest run "
            "belongs there (`scp -r` copies the run instead of the link); rename or remove it"
        )
    link.unlink(missing_ok=True)  # of a killed process; in a container all have the same number
    link.symlink_to(path.name)
    link.replace(latest)


def _newest_unfinished(config: Config, lock: RunLock | None) -> Found:
    """Find the newest run with this config, an intact checkpoint and no result.

    A folder that cannot be read, or is no run of this version, is skipped with a warning.
    """
    wanted, warnings = config_hash(config), []
    for path in _newest_first(path_of("log.dir", config.log.dir)):
        try:
            found = _continued(RunFolder(path), wanted, lock)
        except RunIsBusy:
            raise
        except (UserError, OSError) as error:
            reason = first_line(error).partition("; ")[0]  # without the remedy, which is for a recipe
            warnings.append(f"resume=auto: {path} is skipped ({reason}); restore it, or remove the folder")
            continue
        if found.run is not None:
            return replace(found, warnings=tuple(warnings))
        warnings += found.warnings
    return Found(warnings=tuple(warnings))


def _continued(run: RunFolder, wanted: str, lock: RunLock | None) -> Found:
    """Return the run with its newest intact checkpoint, if it is unfinished and its config has this hash.

    Raises:
        UserError, OSError: its files cannot be read, or it is being trained.
    """
    if not run.config.exists():
        if run.config.is_symlink() or run.checkpoints.is_dir():
            raise UserError(f"{run.config}: missing, or a link that leads nowhere")
        return Found()
    if run.is_finished or config_hash(run.read_config()) != wanted:
        return Found()
    if lock is not None:
        lock.take(run.path)
    checkpoint, damaged = newest_intact(run.checkpoints, hash_of_run(run.config))
    # the run may have ended while this process waited for the lock
    if checkpoint is not None and not run.is_finished:
        return Found(replace(run, resume_from=checkpoint, warnings=tuple(damaged)))
    if lock is not None:
        lock.release()
    return Found(warnings=tuple(damaged))


def _newest_first(runs: Path) -> list[Path]:
    """Return the folders in RUNS, links left out, the newest first.

    The run that `latest` points to is the newest, even if the clock was set back since.
    """
    try:
        paths = sorted(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"log.dir: {runs} cannot be read ({error.strerror}); choose another folder with log.dir="
        ) from None
    latest = os.path.realpath(runs / "latest")

    def age(path: Path) -> tuple[bool, float]:
        try:
            written = RunFolder(path).config.stat().st_mtime
        except OSError:  # reading it will tell the reason
            written = path.lstat().st_mtime
        return os.path.realpath(path) != latest, -written

    return sorted(paths, key=age)


def _named_run(config: Config, path: Path, lock: RunLock | None) -> RunFolder:
    folder, name = split_path(path)
    run = find_run(folder)
    if lock is not None:
        lock.take(run.path)
    if run.is_finished:
        raise UserError(
            f"resume: {folder} is finished; see {run.result}, or start a new run with resume=none"
        )
    saved = run.read_config()
    if config_hash(saved) != config_hash(config):
        changed = ", ".join(_differences(saved, config))
        raise UserError(
            f"resume: {folder} was started with another config (different: {changed}); "
            "give the same keys, or resume=none"
        )
    wanted = hash_of_run(run.config)
    if name is not None:
        checkpoint = named_checkpoint(run, name, "resume")
        verify(checkpoint, wanted)
        return replace(run, resume_from=checkpoint)
    checkpoint, damaged = newest_intact(run.checkpoints, wanted)
    if checkpoint is None:
        message = f"resume: {folder} has no intact checkpoint; start a new run with resume=none"
        raise UserError("\n".join([message, *damaged]))
    return replace(run, resume_from=checkpoint, warnings=tuple(damaged))


def _differences(old: Config, new: Config) -> list[str]:
    before, after = computed_values(old), computed_values(new)
    return [key for key in after if before.get(key) != after[key]]
