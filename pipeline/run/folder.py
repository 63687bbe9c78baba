"""Names the files of a run folder, reads its config, and finds a run folder. Imports no torch."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.atomic_io import read_json
from pipeline.config import Config, load_config
from pipeline.config.yaml_reader import read_recipe
from pipeline.errors import UserError

BEST = "best.json"  # beside the checkpoints
# of these keys, every version has written all into config.yaml; `log` stands last there
_ALWAYS_IN_CONFIG = ("seed", "data", "model", "log")
_STEP = re.compile(r"step-([0-9]{1,18})")


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the one owner of its file names.

    Attributes:
        path: `runs/<name>-<time>/`.
        resume_from: the checkpoint to continue from, or None.
        warnings: what the user should know: checkpoints passed over as damaged, or that there was nothing to
            continue.
    """

    path: Path
    resume_from: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "env.json"

    @property
    def inputs(self) -> Path:
        return self.path / "input.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Names the step of the best checkpoint."""
        return self.checkpoints / BEST

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.npz"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def contact_sheet(self) -> Path:
        """Grad-CAM maps made at the end of training."""
        return self.path / "contact_sheet.png"

    @property
    def explained(self) -> Path:
        """Grad-CAM maps made by `explain`."""
        return self.path / "explained.png"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    @property
    def trackers(self) -> Path:
        """The names that trackers gave to the run."""
        return self.path / "trackers.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def exports(self) -> Path:
        return self.path / "export"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def read_config(self, overrides: Sequence[str] = ()) -> Config:
        """Read config.yaml.

        Args:
            overrides: keys over those of the file.

        Raises:
            UserError: the file is damaged, cut off, of another program or of another version; or an override
                is wrong.
        """
        if self.config.exists() and not self.config.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{self.config}: is not a file; restore it, or give another run")
        config = load_config(self.config, overrides, of_run=True)
        missing = [key for key in _ALWAYS_IN_CONFIG if key not in read_recipe(self.config).values]
        if missing:
            raise UserError(
                f"{self.config}: damaged, or not the config of a run (it has no {', '.join(missing)}); "
                "restore the file, or give another run"
            )
        return config

    @property
    def is_finished(self) -> bool:
        """True if result.json is whole. If it is damaged, continuing the run trains nothing and writes it."""
        if not self.result.is_file():
            return False
        try:
            return isinstance(read_json(self.result), dict)
        except UserError:
            return False


def find_run(path: Path, names: Callable[[], str] = str) -> RunFolder:
    """Find the run folder at PATH (`runs/latest` is followed).

    Args:
        path: the run folder.
        names: returns the names that the caller takes in place of a run, for the message.

    Raises:
        UserError: there is none, or it cannot be opened; names the runs that there are.
    """
    try:
        if not RunFolder(path).config.is_file():
            near = next(
                (runs for folder in (path, path.parent, Path("runs")) if (runs := _known(folder))), []
            )
            known = ", ".join(near) or "none yet; train one with ./launch.sh"
            also = f". Shipped weights: {weights}" if (weights := names()) else ""
            raise UserError(f"{path}: not a run folder (no config.yaml in it). Known: {known}{also}")
    except OSError as error:  # no permission, a name that is too long
        raise UserError(f"{path}: cannot be opened ({error.strerror}); give a run folder") from None
    return RunFolder(path.resolve() if path.is_symlink() else path)


def _known(folder: Path) -> list[str]:
    runs = (path.parent for path in folder.glob("*/config.yaml"))
    exported = "model.safetensors"  # `export NAME` leaves a config too
    return sorted(str(run) for run in runs if not (run / exported).exists())[-5:]


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's name, with any number of leading zeros; None for another name.

    >>> step_of("step-00000082"), step_of("step-82"), step_of("step-82.tar")
    (82, 82, None)
    """
    match = _STEP.fullmatch(name)
    return int(match[1]) if match is not None else None
