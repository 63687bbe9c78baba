"""The run folder: opened new, or found again to be continued."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.checkpoint import newest_intact, write_json
from pipeline.config import Config, computed_values, config_hash, dump_config, load_config
from pipeline.errors import UserError
from pipeline.lock import RunLock


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
    anew = (*damaged, "resume=auto: no unfinished run of this very config with an intact checkpoint, starting anew")
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
        if checkpoint is not None and not run.result.exists():  # it may have ended while this process waited for the lock
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
        raise UserError(f"resume: {path} was started with another config (different: {changed}); give the same keys, or resume=none")
    checkpoint, damaged = newest_intact(run.checkpoints, config_hash(config))
    if checkpoint is None:
        raise UserError("\n".join([f"resume: {path} has no intact checkpoint; start anew with resume=none", *damaged]))
    return RunFolder(run.path, checkpoint, tuple(damaged))


def _differences(old: Config, new: Config) -> list[str]:
    def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for key, value in values.items():
            flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
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


class MetricsLog:
    """Scalars of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard.

    Continuing a run cuts both back to the step that it continues from.

    Args:
        run: the run folder.
        tensorboard: write event files too.
        resume_step: records after this step are dropped.
    """

    def __init__(self, run: RunFolder, tensorboard: bool, resume_step: int):
        self._path = run.metrics
        if run.metrics.exists():
            _cut_back(run.metrics, resume_step)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._tensorboard = (
            {"log_dir": str(run.path / "tb"), "purge_step": resume_step + 1 if resume_step else None} if tensorboard else None
        )
        self._writer: Any = None

    def write(self, record: dict[str, Any]) -> None:
        """Add a record."""
        with self._named():
            self._write(record)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An OSError has the path of the file: a full disk is noticed in writing, which knows no names."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, error.filename or str(self._path)) from None

    def _write(self, record: dict[str, Any]) -> None:
        record = without_nan(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            if self._writer is None:  # its import takes a second or two, which the first step does not wait for
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(**self._tensorboard)
            group = record.get("split", record["kind"])
            for key, value in record.items():
                if isinstance(value, int | float) and key not in ("step", "epoch", "correct", "seen"):
                    self._writer.add_scalar(f"{group}/{key}", value, record["step"])

    def flush(self) -> None:
        """What was written is in the files from now on, though the process be killed."""
        if self._writer is not None:
            with self._named():
                self._writer.flush()

    def close(self) -> None:
        with self._named():
            self._file.close()
            if self._writer is not None:
                self._writer.close()


def _cut_back(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half a line, and after a power cut anything
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Raises UserError where the file is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); is the run finished?") from None


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """The record with null for NaN and infinity, which JSON has no word for.

    >>> without_nan({"loss": float("nan"), "step": 3})
    {'loss': None, 'step': 3}
    """
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()}


def write_result(run: RunFolder, result: dict[str, Any]) -> None:
    write_json(run.result, without_nan(result))


def record_environment(run: RunFolder, environment: dict[str, Any], step: int) -> None:
    """Write env.json; where the run is continued, the new process's environment goes under `continued`, beside the step."""
    path = run.path / "env.json"
    if run.resume_from is not None and path.is_file():
        first = read_json(path)
        environment = {**first, "continued": [*first.get("continued", []), {"step": step, **environment}]}
    write_json(path, environment)


def changed_data(run: RunFolder, data: dict[str, Any]) -> str | None:
    """What to tell where a run is continued on other images than it had before; DATA is what is recorded of them in env.json."""
    path = run.path / "env.json"
    if run.resume_from is None or not path.is_file():
        return None
    first = read_json(path)
    before = [first, *first.get("continued", [])][-1].get("data")
    if before in (None, data):  # it was not recorded in older versions
        return None
    return (
        f"continuing on other images: {before['train']} train and {before['test']} test before, {data['train']} and {data['test']} now, or "
        "of other names or classes; the result is not that of an uninterrupted run"
    )
