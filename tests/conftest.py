"""What all tests share: how torch and Triton are set up here, and how a test leaves the process as it found it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's interpreter must be asked for before Triton is first imported
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring, and tests may run side by side

_LAUNCHER_VARIABLES = (
    *(
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "ACCELERATE_MIXED_PRECISION",
        "ACCELERATE_DYNAMO_BACKEND",
    ),
    *("QUICKRES_NUM_PROCESSES", "QUICKRES_EXIT_CODE_FILE", "QUICKRES_START_TIME"),
)


def _forget_the_device() -> None:
    """Accelerate keeps the device of the first `Accelerator` for the whole process: tests on the CPU and on the GPU would meet."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _kept_process_state() -> Iterator[None]:
    environment = dict(os.environ)
    for name in _LAUNCHER_VARIABLES:
        os.environ.pop(name, None)
    _forget_the_device()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    cudnn, matmul = cast(Any, torch.backends.cudnn), torch.backends.cuda.matmul
    switches = (
        cudnn.benchmark,
        cudnn.allow_tf32,
        matmul.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    )
    yield
    _forget_the_device()
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = switches[:3]
    torch.use_deterministic_algorithms(switches[3])


@pytest.fixture
def process_state() -> Iterator[None]:
    """For tests that train in this process: without a launcher's variables; signal handlers and torch's switches are put back."""
    with _kept_process_state():
        yield


@pytest.fixture(scope="module")
def process_state_of_module() -> Iterator[None]:
    """As `process_state`, for fixtures of a module."""
    with _kept_process_state():
        yield


@pytest.fixture
def before_step(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have something happen before a step, counted from 0, once: `before_step(6, lambda step, batch: …)`."""

    def arrange(number: int, happen: Any) -> None:
        from pipeline.training.step import Step

        step, left = Step.__call__, [happen]

        def disturbed(self: Any, batch: Any) -> Any:
            if self._state.step == number and left:
                left.pop()(self, batch)
            return step(self, batch)

        monkeypatch.setattr(Step, "__call__", disturbed)

    return arrange
