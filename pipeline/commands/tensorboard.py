"""Starts TensorBoard on the runs of a folder, each once."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pipeline.commands.arguments import whole_number
from pipeline.errors import UserError

_REFRESH_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of run folders, or one run folder (default: runs)",
    )
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=6006, metavar="N", help="port (default: 6006)"
    )
    parser.add_argument(
        "--host", default="localhost", metavar="NAME", help="address to serve on (default: localhost)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run TensorBoard until it is interrupted; return its exit code, 0 after Ctrl-C.

    TensorBoard takes `latest`, a link, for one more run. So it is shown a folder of links to the `tb/` of
    each run, named after the run; a thread adds those that begin meanwhile.
    """
    folder = arguments.folder
    runs = tensorboard_folders(folder)
    if not runs:
        raise UserError(
            f"{folder}: holds no run with TensorBoard events (RUN/tb); train one with ./launch.sh, or give "
            "the folder of run folders"
        )
    with tempfile.TemporaryDirectory(prefix="quickres-tensorboard-") as shown:
        link(runs, Path(shown))
        refresh = threading.Event()
        thread = threading.Thread(target=_keep_linking, args=(folder, Path(shown), refresh), daemon=True)
        thread.start()
        print(f"{len(runs)} runs of {folder}" if len(runs) > 1 else f"1 run of {folder}", flush=True)
        words = ("--logdir", shown, "--port", str(arguments.port), "--host", arguments.host)
        try:
            return subprocess.run([sys.executable, "-m", "tensorboard.main", *words]).returncode
        except KeyboardInterrupt:
            return 0
        finally:
            refresh.set()
            thread.join()


def tensorboard_folders(folder: Path) -> dict[str, Path]:
    """Return the `tb/` of each run folder below FOLDER by the name of the run, or of FOLDER itself.

    Links, such as `latest`, are left out.
    """
    if (folder / "tb").is_dir():
        return {folder.resolve().name: (folder / "tb").resolve()}
    try:
        found = sorted(path for path in folder.iterdir() if not path.is_symlink())
    except OSError as error:
        raise UserError(f"{folder}: cannot be opened ({error.strerror}); give a folder of runs") from None
    return {path.name: (path / "tb").resolve() for path in found if (path / "tb").is_dir()}


def link(runs: dict[str, Path], shown: Path) -> None:
    """Make a link for each run that has none yet."""
    for name, events in runs.items():
        if not (shown / name).is_symlink():
            (shown / name).symlink_to(events)


def _keep_linking(folder: Path, shown: Path, ended: threading.Event) -> None:
    while not ended.wait(_REFRESH_S):
        with contextlib.suppress(UserError, OSError):  # the folder may be removed meanwhile
            link(tensorboard_folders(folder), shown)
