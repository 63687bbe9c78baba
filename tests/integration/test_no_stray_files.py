"""A run writes nothing outside the folders of its data, of runs and of the compile cache."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import train
from tests.python import ROOT
from tests.sandbox import files_in, sandbox
from tests.tiny import RECIPE


def checkout() -> set[Path]:
    """Return the files of the checkout, without those that Python and the test tools keep there."""
    names = set()
    for folder in (ROOT, *(ROOT / name for name in ("pipeline", "kernels", "configs", "benchmarks"))):
        names |= {
            path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__pycache__"
        }
    return names


@pytest.mark.slow
def test_a_run_writes_into_its_own_folders_alone(tmp_path: Path):
    before = checkout()
    command = [
        sys.executable,
        "-m",
        "pipeline.train",
        str(RECIPE),
        "duration=1ep",
        "log.explain=true",
        "log.report=true",
    ]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env=sandbox(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"runs"}
    # a network would be compiled in the temporary folder, were torch imported before the cache folder is set
    assert not list((tmp_path / "tmp").iterdir())
    assert {path.name for path in (tmp_path / "home/.cache/quickres").iterdir()} == {"matplotlib"}
    assert {name for name in files_in(tmp_path / "home") if not name.startswith(".cache/quickres/")} == set()
    assert checkout() == before


COMPILED = """
from pipeline.process.cache_dirs import use_cache_folder
use_cache_folder()
from dataclasses import replace
from pipeline.models.families import FAMILIES
FAMILIES["resnet20"] = replace(FAMILIES["resnet20"], depths=(1, 1, 1))
from tests.unit.pipeline.training.test_step import compare_with_eager
compare_with_eager()
"""


@pytest.mark.slow
def test_compiling_on_the_cpu_trains_like_eager_and_writes_into_the_cache_alone(tmp_path: Path):
    """The precompiled C++ headers of inductor are in the cache too.

    They take most of the time of this test.
    """
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(
        command, cwd=tmp_path / "work", env=sandbox(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert {name for name in files_in(tmp_path / "home") if not name.startswith(".cache/quickres/")} == set()
    assert (tmp_path / "home/.cache/quickres/inductor/precompiled_headers").is_dir()


@pytest.mark.usefixtures("process_state")
def test_a_cache_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert train.main([str(RECIPE), f"log.dir={tmp_path}/runs"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: XDG_CACHE_HOME: ")
    assert f"{tmp_path}/file/quickres" in message and "Not a directory" in message
    assert not (tmp_path / "runs").exists()
