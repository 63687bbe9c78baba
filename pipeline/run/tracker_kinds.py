"""Says what is particular to each tracker: its options, pictures, pages and end.

The packages are imported where they are used: only a run that asks for one needs it.
"""

import importlib
import logging
import os
import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pipeline.atomic_io import read_json, write_json
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.run.folder import RunFolder

# in trackio's warnings of records that it loses
_LOSSES = ("could not be persisted", "be dropped", "be lost", "skipped metric", "failed to process")


class Saved:
    """The names that trackers gave to a run, in `trackers.json` of its folder: a continued run keeps them."""

    def __init__(self, run: RunFolder):
        self._path = run.trackers
        try:
            values = read_json(self._path) if self._path.is_file() else {}
        except UserError:  # a damaged file costs a second entry in the tracker, not the run
            values = {}
        self._values: dict[str, str] = values if isinstance(values, dict) else {}
        self._lock = threading.Lock()  # each tracker has a thread

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def keep(self, name: str, value: str) -> str:
        with self._lock:
            if self._values.get(name) != value:
                self._values[name] = value
                write_json(self._path, self._values)
        return value


class Kind(ABC):
    """One kind of tracker.

    Attributes:
        project: in place of `log.project`.
    """

    project: ClassVar[str] = ""

    @abstractmethod
    def options(self, config: Config, run: RunFolder, saved: Saved, resume_step: int) -> Mapping[str, Any]:
        """Return the keyword arguments of accelerate's tracker."""

    def takes_config(self, saved: Saved) -> bool:
        """Return True if the config is sent at the start."""
        return True

    def started(self, tracker: Any, saved: Saved) -> None:
        """Remember what names the run in the tracker; by default nothing."""
        return

    def check(self) -> None:
        """Raise an error if the tracker has only told of a failure; called before each record."""
        return

    @abstractmethod
    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Send a PNG."""

    @abstractmethod
    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        """Send an HTML page."""

    def finish(self, tracker: Any, failed: bool) -> None:
        """Send the rest and close."""
        tracker.finish()


class TensorBoard(Kind):
    """Event files in `tb/` of the run folder; HPARAMS follow at the end, when their metrics are known."""

    project = "tb"

    def takes_config(self, saved: Saved) -> bool:
        return False

    def options(self, config: Config, run: RunFolder, saved: Saved, resume_step: int) -> Mapping[str, Any]:
        return {"purge_step": resume_step + 1 if resume_step else None}

    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")

    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log({name: f"The report of this run: `{path.resolve()}`"}, step=step)


class Wandb(Kind):
    """Weights & Biases. Offline (`WANDB_MODE=offline`) it writes to `wandb/` in the run folder."""

    def options(self, config: Config, run: RunFolder, saved: Saved, resume_step: int) -> Mapping[str, Any]:
        # its console capture and its lines on stderr would disturb the progress bar
        return {
            "id": saved.get("wandb") or saved.keep("wandb", secrets.token_hex(8)),
            "name": run.path.name,
            "resume": "allow",
            "dir": str(run.path),
            "settings": {"silent": True, "console": "off"},
        }

    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log({name: importlib.import_module("wandb").Image(str(path))}, step=step)

    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log({name: importlib.import_module("wandb").Html(str(path), inject=False)}, step=step)

    def finish(self, tracker: Any, failed: bool) -> None:
        tracker.tracker.finish(exit_code=int(failed))


class Mlflow(Kind):
    """MLflow: the server of `MLFLOW_TRACKING_URI`, or else a database `mlflow.db` beside the run folders."""

    def options(self, config: Config, run: RunFolder, saved: Saved, resume_step: int) -> Mapping[str, Any]:
        mlflow = importlib.import_module("mlflow")
        for name in ("mlflow", "alembic"):  # they report each table that they create
            logging.getLogger(name).setLevel(logging.WARNING)
        # it warns at each try to reach a server; a failure is told once, by `Trackers`
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        server, beside = os.environ.get("MLFLOW_TRACKING_URI"), run.path.resolve().parent
        mlflow.set_tracking_uri(server or f"sqlite:///{beside / 'mlflow.db'}")
        if not server:  # MLflow sets it, and the next run of this process would take its place for a server
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        files = None if server else (beside / "mlflow-files").as_uri()
        return {"logging_dir": files, "run_name": run.path.name, "run_id": saved.get("mlflow")}

    def takes_config(self, saved: Saved) -> bool:
        return saved.get("mlflow") is None  # MLflow refuses to change a key, such as `resume`

    def started(self, tracker: Any, saved: Saved) -> None:
        saved.keep("mlflow", tracker.tracker.info.run_id)

    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log_artifact(str(path))

    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log_artifact(str(path))

    def finish(self, tracker: Any, failed: bool) -> None:
        importlib.import_module("mlflow").end_run("FAILED" if failed else "FINISHED")


def _keep_loss(losses: list[str], message: object, *_: object, **__: object) -> None:
    """Keep a warning of trackio that says that records are lost."""
    if any(words in str(message) for words in _LOSSES):
        losses.append(str(message))


class Trackio(Kind):
    """trackio: a database in `TRACKIO_DIR`, by default in the user's cache folder.

    It only warns of records that it cannot store, once for each kind of them: that is a failure here. Its
    other warnings are of no interest in a run.
    """

    def __init__(self) -> None:
        self._losses: list[str] = []

    def options(self, config: Config, run: RunFolder, saved: Saved, resume_step: int) -> Mapping[str, Any]:
        self._losses = losses = []
        for name in (
            "trackio",
            "trackio.run",
            "trackio.utils",
        ):  # it has no option for silence, and would disturb the bar
            names = importlib.import_module(name).__dict__
            names["print"] = lambda *_, **__: None
            names["_emit_nonfatal_warning"] = partial(_keep_loss, losses)
        folder = Path(importlib.import_module("trackio.utils").TRACKIO_DIR)
        folder.mkdir(parents=True, exist_ok=True)
        return {"name": run.path.name, "resume": "allow"}

    def check(self) -> None:
        if self._losses:
            raise RuntimeError(self._losses[0])

    def add_picture(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log({name: importlib.import_module("trackio").Image(str(path))}, step=step)

    def add_page(self, tracker: Any, name: str, path: Path, step: int) -> None:
        tracker.log({name: importlib.import_module("trackio").Html(str(path))}, step=step)

    def finish(self, tracker: Any, failed: bool) -> None:
        tracker.finish()
        self.check()  # it stores the last records now


KINDS: Mapping[str, Kind] = {
    "tensorboard": TensorBoard(),
    "wandb": Wandb(),
    "mlflow": Mlflow(),
    "trackio": Trackio(),
}
