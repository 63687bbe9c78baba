"""The GPU is waked in a thread; without one nothing happens."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline.process import gpu_ahead
from pipeline.process.gpu_ahead import wake_gpu

_FIND = """
import torch
from pipeline.process.gpu_ahead import _cudnn, _dali, _load

paths = [*_dali(), *_cudnn()]
print(*(path.rpartition("/")[2].partition(".")[0] for path in paths))
print(all(map(_load, paths)), _load("/nonesuch.so"))
"""


class Driver:
    """Stands for CUDA's driver.

    Args:
        answer: of each function; 0: it did its work.
    """

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.called.append(name) or self.answer


def test_the_libraries_are_found_beside_torch_and_loaded() -> None:
    ran = subprocess.run([sys.executable, "-c", _FIND], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    names, loaded = ran.stdout.splitlines()
    assert loaded == "True False"
    dali, cudnn = names.split()[:4], names.split()[4:]
    assert dali == ["libdali_core", "libdali_kernels", "libdali", "libdali_operators"]
    assert {"libcudnn_cnn", "libcudnn_engines_precompiled"} <= set(cudnn) and len(cudnn) == 6


@pytest.mark.parametrize(("answer", "loads"), [(0, True), (100, False)])
def test_libraries_are_loaded_for_a_gpu_only(
    answer: int, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, loaded = Driver(answer), list[str]()
    monkeypatch.setattr(gpu_ahead.ctypes, "CDLL", lambda name: driver)
    monkeypatch.setattr(gpu_ahead, "_cudnn", lambda: ["cudnn"])
    monkeypatch.setattr(gpu_ahead, "_dali", lambda: ["dali"])
    monkeypatch.setattr(gpu_ahead, "_load", loaded.append)
    wake_gpu(0, with_dali=True).join(60)
    assert driver.called[0] == "cuInit" and ("cuDevicePrimaryCtxRetain" in driver.called) == loads
    assert loaded == (["dali", "cudnn"] if loads else [])
    loaded.clear()
    wake_gpu(0, with_dali=False).join(60)
    assert loaded == (["cudnn"] if loads else [])


def test_without_a_driver_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpu_ahead.ctypes, "CDLL", missing)
    thread = wake_gpu(0, with_dali=True)
    thread.join(60)
    assert not thread.is_alive() and capfd.readouterr() == ("", "")
