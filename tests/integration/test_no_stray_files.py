"""What a run writes, and where: nothing outside the data, run and compile-cache folders."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sandbox import files_in, sandbox
from tests.tiny import RECIPE, ROOT


def checkout() -> set[Path]:
    """The files of the checkout, but for what Python and the test tools keep there."""
    found = set()
    for folder in (ROOT, *(ROOT / name for name in ("pipeline", "kernels", "configs", "benchmarks"))):
        found |= {path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__pycache__"}
    return found


@pytest.mark.slow
def test_a_run_writes_into_its_own_folders_alone(tmp_path: Path):
    before = checkout()
    command = [sys.executable, "-m", "pipeline.train", str(RECIPE), "duration=1ep", "log.explain=true", "log.report=true"]
    done = subprocess.run(command, cwd=tmp_path / "work", env=sandbox(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"runs"}
    assert files_in(tmp_path / "tmp") == set()
    assert {name for name in files_in(tmp_path / "home") if not name.startswith(".cache/quickres/")} == set()
    assert checkout() == before


def test_compiled_kernels_go_to_the_cache_folder(tmp_path: Path):
    """Also where torch's compiler is imported, and settles on a folder, before anything of ours looks."""
    code = """
from pipeline.train import main
main(["no-such-recipe.yaml"])
import accelerate, torch, torch._inductor
from torch._inductor.runtime.cache_dir_utils import cache_dir, triton_cache_dir
import matplotlib
print(cache_dir(), triton_cache_dir(0), matplotlib.get_cachedir(), sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=sandbox(tmp_path), capture_output=True, text=True, check=True)
    found = [str(Path(line).relative_to(tmp_path / "home/.cache/quickres")) for line in done.stdout.splitlines()]
    assert found == ["inductor", "triton", "matplotlib"]


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    environment = {**sandbox(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "file")}
    command = [sys.executable, "-m", "pipeline.train", str(RECIPE), f"log.dir={tmp_path}/runs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: XDG_CACHE_HOME: the cache folder {tmp_path}/file/quickres cannot be written (Not a directory); ")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()
