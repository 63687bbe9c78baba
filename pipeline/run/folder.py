"""Names the files of a run folder, and finds a run folder. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

BEST = "best.json"  # beside the checkpoints


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
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def exports(self) -> Path:
        return self.path / "export"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"


def runs_in(folder: Path) -> list[RunFolder]:
    """The run folders right below a folder, in the order of their names; links are left out."""
    paths = sorted(path.parent for path in folder.glob("*/config.yaml"))
    return [RunFolder(path) for path in paths if not path.is_symlink()]


def find_run(path: Path) -> RunFolder:
    """Find the run folder at PATH (`runs/latest` is followed).

    Raises:
        UserError: there is none; names the runs that there are.
    """
    if not RunFolder(path).config.is_file():
        near = next((runs for folder in (path, path.parent, Path("runs")) if (runs := _known(folder))), [])
        known = ", ".join(near) or "none yet; train one with ./launch.sh"
        raise UserError(f"{path}: not a run folder (no config.yaml in it). Known: {known}")
    return RunFolder(path.resolve() if path.is_symlink() else path)


def _known(folder: Path) -> list[str]:
    return sorted(str(path.parent) for path in folder.glob("*/config.yaml"))[-5:]
