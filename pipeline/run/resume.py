"""Opens a run folder: makes a new one, or finds the one that `resume` means."""

import os
from datetime import datetime
from pathlib import Path

from pipeline.atomic_io import write_whole
from pipeline.config import Config, computed_values, config_hash, dump_config, hash_of_run, load_config
from pipeline.errors import UserError
from pipeline.run.checkpoint import newest_intact
from pipeline.run.folder import RunFolder, find_run, runs_in
from pipeline.run.lock import RunLock

_MOST_IN_ONE_SECOND = 1000


def open_run(config: Config, recipe: str, lock: RunLock) -> RunFolder:
    """Make a new run folder, or find the one that `resume` means. Rank 0 calls this and sends the result to
    the others.

    Args:
        config: of the run.
        recipe: names a new run.
        lock: taken for the folder.

    Raises:
        UserError: the run to resume does not exist, is finished, has another config, is being trained, or has
            no intact checkpoint.
    """
    resumed, damaged = find_resumable(config, lock)
    if resumed is not None:
        _point_latest(resumed.path.parent, resumed.path)
        return resumed
    new_run = (
        "resume=auto: found no unfinished run with this config and a valid checkpoint; starting a new run"
    )
    warnings = (*damaged, new_run) if config.resume == "auto" else ()
    return RunFolder(_make_folder(config, recipe, lock), warnings=warnings)


def find_resumable(config: Config, lock: RunLock | None = None) -> tuple[RunFolder | None, list[str]]:
    """Find the run folder that `resume` means.

    Args:
        config: of the run.
        lock: taken for the folder; without one nothing is written.

    Returns:
        The folder, or None if a new run is to be made; and a message for each damaged checkpoint of the runs
        that have no intact one.

    Raises:
        UserError: as for `open_run`.
    """
    if config.resume == "auto":
        return _newest_unfinished(config, lock)
    return None if config.resume == "none" else _named_run(config, Path(config.resume), lock), []


def _make_folder(config: Config, recipe: str, lock: RunLock) -> Path:
    runs, name = Path(config.log.dir), config.log.name or recipe
    try:
        runs.mkdir(parents=True, exist_ok=True)
        path = _new_folder(runs, f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
        lock.take(path)
        write_whole(RunFolder(path).config, dump_config(config))
        _point_latest(runs, path)
    except OSError as error:
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
    link = runs / f".latest-{os.getpid()}"
    link.symlink_to(path.name)
    try:
        link.replace(runs / "latest")
    except IsADirectoryError:
        link.unlink()
        raise UserError(
            f"{runs / 'latest'}: is a folder, but the link to the newest run belongs there "
            "(`scp -r` copies the run instead of the link); rename or remove it"
        ) from None


def _newest_unfinished(config: Config, lock: RunLock | None) -> tuple[RunFolder | None, list[str]]:
    """Find the newest run with this config, an intact checkpoint and no result."""
    wanted, messages = config_hash(config), []
    for run in _newest_first(Path(config.log.dir)):
        if run.result.exists() or not _has_config(run, wanted):
            continue
        if lock is not None:
            lock.take(run.path)
        checkpoint, damaged = newest_intact(run.checkpoints, hash_of_run(run.config))
        # the run may have ended while this process waited for the lock
        if checkpoint is not None and not run.result.exists():
            return RunFolder(run.path, checkpoint, tuple(damaged)), []
        if lock is not None:
            lock.release()
        messages += damaged
    return None, messages


def _newest_first(runs: Path) -> list[RunFolder]:
    """Sort by time; the run that `latest` points to is the newest, even if the clock was set back since."""
    latest = (runs / "latest").resolve()
    return sorted(runs_in(runs), key=lambda run: (run.path.resolve() != latest, -run.config.stat().st_mtime))


def _has_config(run: RunFolder, wanted: str) -> bool:
    try:
        return config_hash(load_config(run.config, of_run=True)) == wanted
    except UserError:  # such as a run of an older version: its config is another one
        return False


def _named_run(config: Config, path: Path, lock: RunLock | None) -> RunFolder:
    run = find_run(path)
    if lock is not None:
        lock.take(run.path)
    if run.result.exists():
        raise UserError(f"resume: {path} is finished; see {run.result}, or start a new run with resume=none")
    saved = load_config(run.config, of_run=True)
    if config_hash(saved) != config_hash(config):
        changed = ", ".join(_differences(saved, config))
        raise UserError(
            f"resume: {path} was started with another config (different: {changed}); "
            "give the same keys, or resume=none"
        )
    checkpoint, damaged = newest_intact(run.checkpoints, hash_of_run(run.config))
    if checkpoint is None:
        message = f"resume: {path} has no intact checkpoint; start a new run with resume=none"
        raise UserError("\n".join([message, *damaged]))
    return RunFolder(run.path, checkpoint, tuple(damaged))


def _differences(old: Config, new: Config) -> list[str]:
    before, after = computed_values(old), computed_values(new)
    return [key for key in after if before.get(key) != after[key]]
