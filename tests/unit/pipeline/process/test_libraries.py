"""Libraries that the system does not load: for want of memory, or on a file system without programs."""

import os
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from pipeline.commands.exit_code import exit_code_of
from pipeline.errors import OutOfMemory, TrainingError
from pipeline.process.fast_import import imports_uncollected
from pipeline.process.libraries import check_address_limit, explain_library
from tests.python import run_python

NOT_MAPPED = "failed to map segment from shared object"
FORBIDDEN, NO_MEMORY = "Operation not permitted", "Cannot allocate memory"


def set_limit(monkeypatch: pytest.MonkeyPatch, gib: float | None) -> None:
    limit = resource.RLIM_INFINITY if gib is None else int(gib * 2**30)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))


@pytest.mark.parametrize(
    ("limit", "text", "is_noexec", "words"),
    [
        (
            None,
            f"/a b:c/k.so: {NOT_MAPPED}: {FORBIDDEN}",
            False,
            "/a b:c/k.so: cannot be loaded, because .* noexec",
        ),
        (None, f"dlopen: cannot. /k.so: {NOT_MAPPED}", True, "/k.so: cannot be loaded, because .* noexec"),
        (8.0, f"/k.so: {NOT_MAPPED}", True, "/k.so: .* noexec"),
        (
            8.0,
            f"/k.so: {NOT_MAPPED}: {NO_MEMORY}",
            False,
            "/k.so: there is no memory .* use 8.0 GiB",
        ),
        (8.0, f"libtorch_cuda.so: {NOT_MAPPED}", True, "libtorch_cuda.so: there is no memory to load it"),
        (None, f"/k.so: {NOT_MAPPED}: {NO_MEMORY}", False, "/k.so: there is no memory to load it; end other"),
        (
            None,
            f"libtorch_cuda.so: {NOT_MAPPED}",
            False,
            "libtorch_cuda.so: there is no memory",
        ),
    ],
)
def test_why_a_library_is_not_loaded(
    limit: float | None, text: str, is_noexec: bool, words: str, monkeypatch: pytest.MonkeyPatch
):
    set_limit(monkeypatch, limit)
    flags = os.ST_NOEXEC if is_noexec else 0
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert re.match(words, str(explain_library(ImportError(text))))


def test_another_error_is_no_library_s():
    assert explain_library(ImportError("cannot import name 'x'")) is None


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_an_import_that_needs_such_a_library(kind: type[Exception], monkeypatch: pytest.MonkeyPatch):
    """torch opens its first library by itself, which gives an OSError."""
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(TrainingError, match="noexec"), imports_uncollected():
        raise kind(f"/k.so: {NOT_MAPPED}: {FORBIDDEN}")
    with pytest.raises(kind, match="another"), imports_uncollected():
        raise kind("another")


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_command_that_needs_such_a_library(kind: type[Exception], capsys: pytest.CaptureFixture[str]):
    """Nothing is imported to explain it: a second import of torch would hide the reason."""

    def work() -> int:
        raise kind(f"/k.so: {NOT_MAPPED}: {FORBIDDEN}")

    with patch.dict(sys.modules, {"pipeline.training.faults": None}):
        assert exit_code_of(work) == 1
    assert "noexec" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [None, 5.0])
def test_enough_addresses(limit: float | None, monkeypatch: pytest.MonkeyPatch):
    set_limit(monkeypatch, limit)
    check_address_limit()


def test_too_few_addresses_are_told(monkeypatch: pytest.MonkeyPatch):
    set_limit(monkeypatch, 4.9)
    with pytest.raises(OutOfMemory, match=r"need 5 GiB of addresses, and .* 4\.9 GiB .*ulimit -v unlimited"):
        check_address_limit()


@pytest.mark.parametrize(
    "words",
    [
        "pipeline.train configs/quickstart.yaml log.dir=FOLDER",
        "pipeline evaluate cifar10_resnet20",
        "pipeline.distributed.launcher --num_processes 2 --cpu -m pipeline.train log.dir=FOLDER",
    ],
)
def test_a_command_that_may_use_few_addresses(words: str, tmp_path: Path):
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
    run = "name, *sys.argv[1:] = sys.argv[1:]; runpy.run_module(name, run_name='__main__', alter_sys=True)"
    command = words.replace("FOLDER", str(tmp_path)).split()
    done = run_python("-c", f"{limit} {run}", *command, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torch and DALI need 5 GiB")
    assert list(tmp_path.iterdir()) == []
