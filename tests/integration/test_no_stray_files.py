"""What a run writes, and where: nothing outside the data, run and compile-cache folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import train
from tests.sandbox import files_in, sandbox
from tests.tiny import RECIPE, ROOT


def checkout() -> set[Path]:
    """The files of the checkout, but for what Python and the test tools keep there."""
    found = set()
    for folder in (ROOT, *(ROOT / name for name in ("pipeline", "kernels", "configs", "benchmarks"))):
        found |= {
            path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__pycache__"
        }
    return found


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
    assert not list(
        (tmp_path / "tmp").iterdir()
    )  # where torch would compile, if it had not been told before it was imported
    assert {path.name for path in (tmp_path / "home/.cache/quickres").iterdir()} == {"inductor", "matplotlib"}
    assert {name for name in files_in(tmp_path / "home") if not name.startswith(".cache/quickres/")} == set()
    assert checkout() == before


COMPILED = """
import sys
from pipeline.process.cache_dirs import use_cache_folder
use_cache_folder()
import torch
from pipeline.training.build import compile_in_place
from pipeline.config import load_config
network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
config = load_config(sys.argv[1], ["compile.mode=default"])
compile_in_place(network, config.compile, torch.device("cpu"))
network(torch.ones(2, 4))
"""


@pytest.mark.slow
def test_compiling_on_the_cpu_writes_into_the_cache_alone(tmp_path: Path):
    """Inductor's precompiled C++ headers too."""
    command = [sys.executable, "-c", COMPILED, str(RECIPE)]
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
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(
        f"error: XDG_CACHE_HOME: the cache folder {tmp_path}/file/quickres cannot be written (Not a directory); "
    )
    assert not (tmp_path / "runs").exists()
