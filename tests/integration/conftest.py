"""Share between the tests of commands: a checkout of stand-ins for launch.sh, and a finished run."""

from pathlib import Path

import pytest

from pipeline import train
from pipeline.inference.trained_model import Trained, load_trained
from tests.integration.checkout import Checkout
from tests.tiny import RECIPE, only_run


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """Train two epochs; some files have a `run` of their own."""
    folder = tmp_path_factory.mktemp("runs")
    keys = ("duration=2ep", "log.tensorboard=false", "log.report=false", "ema.decay=0.9")
    assert train.main([str(RECIPE), f"log.dir={folder}", *keys]) == 0
    return only_run(folder)


@pytest.fixture
def trained(run: Path) -> Trained:
    return load_trained(run)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every reading of the data set fail."""

    def gone(*_: object, **__: object) -> None:
        raise AssertionError("reads the data set")

    for name in ("load_splits", "load_test"):
        monkeypatch.setattr(f"pipeline.inference.trained_model.{name}", gone)
