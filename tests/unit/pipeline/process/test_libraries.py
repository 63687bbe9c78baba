"""Libraries that the system does not load: for want of memory, or on a file system without programs."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import OutOfMemory
from pipeline.process.libraries import check_address_limit, explain_library
from tests.python import run_python

NOT_MAPPED = "failed to map segment from shared object"


def set_limit(monkeypatch: pytest.MonkeyPatch, gib: float | None) -> None:
    limit = resource.RLIM_INFINITY if gib is None else int(gib * 2**30)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))


@pytest.mark.parametrize(
    ("limit", "library", "is_noexec", "words"),
    [
        (
            None,
            "/a b/kernel.so",
            False,
            "/a b/kernel.so: cannot be loaded, because its file system is mounted noexec",
        ),
        (8.0, "/kernel.so", True, "noexec"),
        (8.0, "/kernel.so", False, "/kernel.so: there is no memory to load it; this process may use 8.0 GiB"),
        (8.0, "libtorch_cuda.so", True, "libtorch_cuda.so: there is no memory to load it"),
        (
            None,
            "libtorch_cuda.so",
            False,
            "libtorch_cuda.so: there is no memory to load it; end other programs",
        ),
    ],
)
def test_why_a_library_is_not_loaded(
    limit: float | None, library: str, is_noexec: bool, words: str, monkeypatch: pytest.MonkeyPatch
):
    set_limit(monkeypatch, limit)
    flags = os.ST_NOEXEC if is_noexec else 0
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert words in str(explain_library(ImportError(f"{library}: {NOT_MAPPED}")))


def test_another_error_is_no_library_s():
    assert explain_library(ImportError("cannot import name 'x'")) is None


@pytest.mark.parametrize("limit", [None, 5.0])
def test_enough_addresses(limit: float | None, monkeypatch: pytest.MonkeyPatch):
    set_limit(monkeypatch, limit)
    check_address_limit()


def test_too_few_addresses_are_told(monkeypatch: pytest.MonkeyPatch):
    set_limit(monkeypatch, 4.9)
    with pytest.raises(
        OutOfMemory, match=r"take 5 GiB of addresses, and .* may use 4\.9 GiB; .*ulimit -v unlimited"
    ):
        check_address_limit()


@pytest.mark.parametrize(
    "command", ["pipeline.train configs/quickstart.yaml", "pipeline evaluate cifar10_resnet20"]
)
def test_a_command_that_may_use_few_addresses(command: str, tmp_path: Path):
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30));"
    run = "name, *sys.argv[1:] = sys.argv[1:]; runpy.run_module(name, run_name='__main__', alter_sys=True)"
    keys = [f"log.dir={tmp_path}"] if "train" in command else []
    done = run_python("-c", f"{limit} {run}", *command.split(), *keys, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torch and DALI take 5 GiB") and not list(tmp_path.iterdir())
