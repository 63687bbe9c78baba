"""The run folder: opened new, or found again to be continued."""

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import Config, computed_values, config_hash, dump_config, load_config
from pipeline.errors import UserError
from pipeline.run.checkpoint import newest_intact
from pipeline.run.lock import RunLock


@dataclass(frozen=True)
class RunFolder:
    """Where a run is written.

    Attributes:
        path: `runs/<name>-<time>/`.
        resume_from: the checkpoint to continue from, or None.
        warnings: what the user should know: damaged checkpoints that were passed over, or that nothing was found to continue.
    """

    path: Path
    resume_from: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"


def open_run(config: Config, recipe: str, lock: RunLock) -> RunFolder:
    """Make a new run folder, or find the one that `resume` means. Rank 0 calls this and tells the others.

    Args:
        config: of the run.
        recipe: names a new run.
        lock: taken for the folder.

    Raises:
        UserError: the run to resume does not exist, is finished, is another config's, is being trained, or has no intact checkpoint.
    """
    found, damaged = find_resumable(config, lock)
    if found is not None:
        _point_latest(found.path.parent, found.path)
        return found
    anew = (
        *damaged,
        "resume=auto: no unfinished run of this very config with an intact checkpoint, starting anew",
    )
    return RunFolder(_make_folder(config, recipe, lock), warnings=anew if config.resume == "auto" else ())


def find_resumable(config: Config, lock: RunLock | None = None) -> tuple[RunFolder | None, list[str]]:
    """The run folder that `resume` means; None where a new one is to be made, and what is wrong with those that have no intact checkpoint.

    Args:
        config: of the run.
        lock: taken for the folder; without one nothing is written.

    Raises:
        UserError: as for `open_run`.
    """
    if config.resume == "auto":
        return _newest_unfinished(config, lock)
    return None if config.resume == "none" else _resume(config, Path(config.resume), lock), []


def _make_folder(config: Config, recipe: str, lock: RunLock) -> Path:
    runs, name = Path(config.log.dir), config.log.name or recipe
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            path = runs / (f"{name}-{stamp}" if attempt == 0 else f"{name}-{stamp}-{attempt}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        else:
            raise UserError(f"{runs}: a thousand runs of {name} in one second; set log.name")
        lock.take(path)
        (path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        _point_latest(runs, path)
    except OSError as error:
        raise UserError(
            f"log.dir: {error.filename or runs} cannot be written ({error.strerror}); choose another folder with log.dir="
        ) from None
    return path


def _point_latest(runs: Path, path: Path) -> None:
    link = runs / f".latest-{os.getpid()}"
    link.symlink_to(path.name)
    try:
        link.replace(runs / "latest")
    except IsADirectoryError:
        link.unlink()
        raise UserError(
            f"{runs / 'latest'}: a folder, where the link to the newest run belongs (`scp -r` copies the run instead); rename or remove it"
        ) from None


def _newest_unfinished(config: Config, lock: RunLock | None) -> tuple[RunFolder | None, list[str]]:
    """The newest run of the same config that has an intact checkpoint and no result; and what is wrong with those that have none."""
    wanted, told = config_hash(config), []
    runs = Path(config.log.dir)
    latest = (runs / "latest").resolve()  # a clock that was set back gives the newest run an old time

    def age(path: Path) -> tuple[bool, float]:
        return path.resolve() != latest, -(path / "config.yaml").stat().st_mtime

    candidates = sorted((p.parent for p in runs.glob("*/config.yaml") if not p.parent.is_symlink()), key=age)
    for path in candidates:
        run = RunFolder(path)
        if run.result.exists():
            continue
        try:
            same = config_hash(load_config(path / "config.yaml")) == wanted
        except UserError:  # of an older version, say: not this config
            continue
        if not same:
            continue
        if lock is not None:
            lock.take(path)
        checkpoint, damaged = newest_intact(run.checkpoints, wanted)
        if (
            checkpoint is not None and not run.result.exists()
        ):  # it may have ended while this process waited for the lock
            return RunFolder(path, checkpoint, tuple(damaged)), []
        if lock is not None:
            lock.release()
        told += damaged
    return None, told


def _resume(config: Config, path: Path, lock: RunLock | None) -> RunFolder:
    run = RunFolder(find_run(path).path)
    if lock is not None:
        lock.take(run.path)
    if run.result.exists():
        raise UserError(f"resume: {path} is finished; see {run.result}, or start anew with resume=none")
    if config_hash(load_config(run.path / "config.yaml")) != config_hash(config):
        changed = ", ".join(_differences(load_config(run.path / "config.yaml"), config))
        raise UserError(
            f"resume: {path} was started with another config (different: {changed}); give the same keys, or resume=none"
        )
    checkpoint, damaged = newest_intact(run.checkpoints, config_hash(config))
    if checkpoint is None:
        raise UserError(
            "\n".join([f"resume: {path} has no intact checkpoint; start anew with resume=none", *damaged])
        )
    return RunFolder(run.path, checkpoint, tuple(damaged))


def _differences(old: Config, new: Config) -> list[str]:
    def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat.update(
                flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
            )
        return flat

    before, after = flatten(computed_values(old)), flatten(computed_values(new))
    return [key for key in after if before.get(key) != after[key]]


def find_run(path: Path) -> RunFolder:
    """The run folder at PATH (`runs/latest` is followed).

    Raises:
        UserError: there is none; names the runs that there are.
    """
    if not (path / "config.yaml").is_file():
        around = [folder for folder in (path, path.parent, Path("runs")) if any(folder.glob("*/config.yaml"))]
        known = sorted(str(p.parent) for p in around[0].glob("*/config.yaml"))[-5:] if around else []
        raise UserError(
            f"{path}: not a run folder (no config.yaml in it). Known: {', '.join(known) or 'none yet; train one with ./launch.sh'}"
        )
    return RunFolder(path.resolve() if path.is_symlink() else path)
