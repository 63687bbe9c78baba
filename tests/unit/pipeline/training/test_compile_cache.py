"""Compiled code goes into a file and out of it; the compilers themselves are left to the tests on a GPU."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import __main__ as cli
from pipeline.distributed.processes import connect
from pipeline.errors import UserError
from pipeline.training import compile_cache
from pipeline.training.compile_cache import compile_step, load_compiled, save_compiled
from tests.tiny import RECIPE, tiny_config

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def artifacts(monkeypatch: pytest.MonkeyPatch, no_libraries: None) -> list[bytes]:
    """Take the place of torch's artifacts; return those that were loaded."""
    loaded: list[bytes] = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"artifacts", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda data: loaded.append(data) or "info")
    return loaded


def test_code_goes_from_one_machine_to_another(
    artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The lists of Triton name files by their whole paths."""
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "new/code.zip"
    (here / "ABC").mkdir(parents=True)
    (here / "ABC/kernel.cubin").write_bytes(b"\0\1")
    paths = {"child_paths": {"kernel.cubin": str(here / "ABC/kernel.cubin")}}
    (here / "ABC/__grp__kernel.json").write_text(json.dumps(paths))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(here))
    assert save_compiled(file) == file.stat().st_size
    monkeypatch.setenv("TRITON_CACHE_DIR", str(there))
    load_compiled(file)
    assert artifacts == [b"artifacts"]
    assert (there / "ABC/kernel.cubin").read_bytes() == b"\0\1"
    listed = json.loads((there / "ABC/__grp__kernel.json").read_text())["child_paths"]
    assert listed == {"kernel.cubin": str(there / "ABC/kernel.cubin")}


def test_libraries_of_the_cpu_go_along(
    artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Torch's artifacts hold C++ as text: without the libraries, loading saves a tenth of the time."""
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "code.zip"
    (here / "ab").mkdir(parents=True)
    (here / "ab/kernel.main.so").write_bytes(b"\x7fELF")
    (here / "ab/kernel.main.cpp").write_text("int main() {}")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(here))
    save_compiled(file)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(there))
    load_compiled(file)
    assert [path.name for path in there.rglob("*.*")] == ["kernel.main.so"]
    assert (there / "ab/kernel.main.so").read_bytes() == b"\x7fELF"
    monkeypatch.setattr(compile_cache, "_describe_cpu", lambda: "another CPU")
    with pytest.raises(UserError, match="here another CPU"):
        load_compiled(file)


def test_what_compiles_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["compile", str(RECIPE), "compile.mode=none"]) == 2
    assert "compile.mode: none compiles nothing" in capsys.readouterr().err


def test_code_of_another_version_is_refused(
    artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    save_compiled(tmp_path / "code.zip")
    here = compile_cache.describe_compiler()
    monkeypatch.setattr(compile_cache, "describe_compiler", lambda: {**here, "torch": "1.0"})
    with pytest.raises(UserError, match=r"--load: .*torch 2\.[^;]*, here 1\.0;"):
        load_compiled(tmp_path / "code.zip")
    assert not artifacts


def _flip_bits(archive: bytes) -> bytes:
    """Damage the packed content of the largest member, as a bad disk does."""
    middle = archive.index(b"triton/ABC/kernel.cubin") + 200
    return (
        archive[:middle]
        + bytes(255 - byte for byte in archive[middle : middle + 50])
        + archive[middle + 50 :]
    )


def _describe_by_a_list(archive: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(content, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"[1]" if name == "about.json" else old.read(name))
    return content.getvalue()


@pytest.mark.parametrize(
    "damage", [_flip_bits, _describe_by_a_list, lambda archive: archive[: len(archive) // 2]]
)
def test_nothing_of_a_damaged_file_is_loaded(
    damage: Callable[[bytes], bytes], artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "code.zip"
    for name in ("AAA", "ABC"):
        (here / name).mkdir(parents=True)
        (here / name / "kernel.cubin").write_bytes(random.Random(0).randbytes(2000))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(here))
    save_compiled(file)
    file.write_bytes(damage(file.read_bytes()))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(there))
    with pytest.raises(UserError, match=r"--load: .*code.zip cannot be read .*--save"):
        load_compiled(file)
    assert not artifacts and not there.exists()


@pytest.mark.usefixtures("no_libraries")
def test_artifacts_that_torch_cannot_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"damaged", None))
    save_compiled(tmp_path / "code.zip")
    with pytest.raises(UserError, match=r"--load: .*code.zip cannot be read .*--save"):
        load_compiled(tmp_path / "code.zip")
    assert not caplog.records


def test_a_cache_that_cannot_be_written_is_named(
    artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/kernel").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "here"))
    save_compiled(tmp_path / "code.zip")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"--load: .*/file.* cannot be written .*XDG_CACHE_HOME"):
        load_compiled(tmp_path / "code.zip")


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_nothing_is_written_outside_the_cache(
    name: str, artifacts: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    save_compiled(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip", "a") as archive:
        archive.writestr(f"triton/{name}", b"")
    with pytest.raises(UserError, match="outside: not a name in the cache"):
        load_compiled(tmp_path / "code.zip")
    assert not artifacts and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "text", "another archive"])
def test_a_file_of_another_kind_is_refused(content: bytes | None, tmp_path: Path):
    file = tmp_path / "code.zip"
    if content is None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("other", "")
    else:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"--load: .*code.zip cannot be read .*--save"):
        load_compiled(file)


def test_a_step_is_compiled_without_data_and_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    keys = ("compile.mode=default", "compile.backend=aot_eager", f"log.dir={tmp_path}/runs")
    config = tiny_config(*keys, "data.dataset=cifar10", f"data.root={tmp_path}", "data.holdout=8")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compile_step(config, connect(config))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "compile: give either CONFIG"),
        (["{recipe}", "--load", "code.zip"], "compile: give either CONFIG"),
        (["--load", "code.zip"], "--load: code.zip: no such file"),
        (["{recipe}", "--save", "."], "--save: . is a folder"),
        (["{recipe}", "compile.mode=none"], "compile.mode: none compiles nothing on cpu"),
        (["{recipe}", "compile.mod=none"], "did you mean compile.mode?"),
    ],
)
def test_bad_input(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compile", *(word.format(recipe=RECIPE) for word in words)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "minutes" not in printed.out, "it was refused before the work"
