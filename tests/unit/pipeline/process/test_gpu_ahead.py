"""The GPU is opened in a thread; without one nothing happens."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import train
from pipeline.config import load_config
from pipeline.process import gpu_ahead
from pipeline.process.gpu_ahead import wake_gpu

_FIND = """
import threading

import torch
from pipeline.process.gpu_ahead import _cudnn, _dali, _load

paths = [*_dali(), *_cudnn(threading.Event())]
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
    monkeypatch.setattr(gpu_ahead, "_cudnn", lambda imported: ["cudnn"])
    monkeypatch.setattr(gpu_ahead, "_dali", lambda: ["dali"])
    monkeypatch.setattr(gpu_ahead, "_load", loaded.append)
    wake_gpu(0, with_dali=True)()
    assert driver.called[0] == "cuInit" and ("cuDevicePrimaryCtxRetain" in driver.called) == loads
    assert loaded == (["dali", "cudnn"] if loads else [])
    loaded.clear()
    wake_gpu(0, with_dali=False)()
    assert loaded == (["cudnn"] if loads else [])


def test_without_a_driver_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gpu_ahead.ctypes, "CDLL", missing)
    wake_gpu(0, with_dali=True)()
    assert capfd.readouterr() == ("", "")
    assert all(thread.name != "gpu" for thread in threading.enumerate())


def test_a_torch_without_cudnn_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    monkeypatch.setattr(
        gpu_ahead, "read_text", lambda path: looks.append("look") or "7f00 r--p /lib/libc.so.6"
    )
    imported = threading.Event()
    imported.set()
    assert gpu_ahead._cudnn(imported) == [] and len(looks) == 2, "once more when torch is there"


@pytest.mark.parametrize(
    ("keys", "woken"),
    [
        ((), (1, True)),
        (("data.loader=fused",), (1, False)),
        (("runtime.device=cpu",), None),
    ],
)
def test_training_opens_the_gpu_of_its_process(
    keys: tuple[str, ...], woken: tuple[int, bool] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    for name, value in {**world, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    called: list[tuple[int, bool]] = []

    def wake(number: int, with_dali: bool) -> Callable[[], None]:
        called.append((number, with_dali))
        return lambda: None

    monkeypatch.setattr(train, "wake_gpu", wake)
    train._wake_gpu(load_config(overrides=["data.dataset=digits", *keys]))()
    assert called == ([woken] if woken else [])


_ORDER = """
import sys
from pipeline import train
from pipeline.config import load_config

def wake(number, with_dali):
    print("woken", "torch" in sys.modules)
    return lambda: (print("waits", "torch" in sys.modules), sys.exit(0))

train.wake_gpu = wake
train.train(load_config(overrides=["data.dataset=digits", "log.dir=" + sys.argv[1]]))
"""


def test_the_gpu_is_opened_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ORDER, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines() == ["woken False", "waits True"], ran.stderr
