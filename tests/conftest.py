"""Set up torch and Triton for all tests, and let a test leave the process as it was before the test."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this variable when it is first imported: without a GPU, its interpreter runs the kernels
    os.environ["TRITON_INTERPRET"] = "1"
# Threads cost tiny tensors more time than they save, and pytest's workers share the cores. Runs that a test
# starts and compares need the same number.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# Under `nohup`, and in the background of a script, the tests ignore these signals, and so would all that they
# start: bash cannot trap a signal that is ignored at its start. A handler is not inherited.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

_LAUNCHER_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_DYNAMO_BACKEND",
    "QUICKRES_NUM_PROCESSES",
    "QUICKRES_RECIPE",
    "QUICKRES_START_TIME",
    "QUICKRES_USER_THREADS",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of workers for `-n auto`: one for each core.

    With a GPU there are none: its tests measure and fill the memory of the GPU, one after another.
    """
    return 0 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _forget_device() -> None:
    """Reset accelerate, which keeps the device of the first `Accelerator` for the whole process."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _restored_process_state() -> Iterator[None]:
    environment = dict(os.environ)
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    _forget_device()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    cudnn, matmul = cast(Any, torch.backends.cudnn), torch.backends.cuda.matmul
    switches = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    _forget_device()
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = switches
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def process_state() -> Iterator[None]:
    """Let a test train in this process.

    The launcher's variables are removed. Signal handlers and torch's switches are restored after the test.
    """
    with _restored_process_state():
        yield


@pytest.fixture(scope="module")
def process_state_of_module() -> Iterator[None]:
    """Do the same as `process_state`, for fixtures of a module."""
    with _restored_process_state():
        yield


@pytest.fixture
def short_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build resnet20 with one block in each stage, not three: it compiles in a third of the time."""
    from pipeline.models.families import FAMILIES

    monkeypatch.setitem(FAMILIES, "resnet20", replace(FAMILIES["resnet20"], depths=(1, 1, 1)))


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that arranges for an act before a step: `before_step(6, lambda step, batch: …)`.

    Steps are counted from 0. The act happens once.
    """

    def arrange(number: int, act: Any) -> None:
        from pipeline.training.step import Step

        step, acts = Step.__call__, [act]

        def watched(self: Any, batch: Any) -> Any:
            if self._state.step == number and acts:
                acts.pop()(self, batch)
            return step(self, batch)

        monkeypatch.setattr(Step, "__call__", watched)

    return arrange
