"""What all tests share: how torch and Triton are set up here, and how a test leaves the process as it found it."""

import os
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's interpreter must be asked for before Triton is first imported
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring, and tests may run side by side


@pytest.fixture
def process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that train in this process: signal handlers, torch's switches and what a launcher would set are put back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "QUICKRES_NUM_PROCESSES", "QUICKRES_EXIT_CODE_FILE", "QUICKRES_START_TIME"):
        monkeypatch.delenv(name, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    cudnn, matmul = cast(Any, torch.backends.cudnn), torch.backends.cuda.matmul
    switches = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()
    environment = dict(os.environ)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = switches[:3]
    torch.use_deterministic_algorithms(switches[3])
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
