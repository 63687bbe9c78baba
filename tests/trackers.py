"""Opens trackers whose stores lie in a temporary folder, for their tests."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.run import trackers
from pipeline.run.folder import RunFolder
from pipeline.run.trackers import Trackers
from tests.patience import PATIENCE_S
from tests.tiny import tiny_config

MARKS = [
    pytest.mark.usefixtures("process_state", "local_stores"),
    # of the packages themselves, in their threads
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def local_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every tracker on this machine, below a temporary folder; a busy machine tells of no wait."""
    monkeypatch.setattr(trackers, "_QUIET_S", PATIENCE_S)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    importlib.import_module("trackio")  # reads TRACKIO_DIR when it is imported
    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        for name, folder in (("TRACKIO_DIR", "trackio"), ("MEDIA_DIR", "trackio/media")):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, tmp_path / folder)


def open_trackers(folder: Path, *names: str, resume_step: int = 0, said: list[str] | None = None) -> Trackers:
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(
        f"log.trackers=[{','.join(names)}]",
        "optimizer.lr=0.25",
        f"resume={'auto' if resume_step else 'none'}",
    )
    say: Callable[[str], object] = print if said is None else said.append
    return Trackers(config, RunFolder(folder), True, resume_step, say)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    accumulator = EventAccumulator(str(folder / "tb"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
