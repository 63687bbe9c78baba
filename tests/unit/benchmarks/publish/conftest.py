"""Records of run folders, for the tests of this folder."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks.publish import recipes
from benchmarks.publish.records import Record, append
from tests.unit.benchmarks.recorded import make_run, recorded


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recipes, "append", partial(append, results=tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def record(results: Path, tmp_path: Path) -> Record:
    return recorded(results, *(make_run(tmp_path / "runs", seed) for seed in range(3)))
