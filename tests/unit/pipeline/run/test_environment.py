"""What is asked of the system about a run's machine."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.run import environment
from tests.gpus import needs_gpu


def test_nvidia_smi_is_asked_for_the_gpu_that_torch_means(monkeypatch: pytest.MonkeyPatch):
    """With CUDA_VISIBLE_DEVICES=1, torch's GPU 0 is nvidia-smi's GPU 1."""
    uuid = "4f2a7c10-0000-1111-2222-333344445555"
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> str:
        asked.append(command)
        return "580.1, 700"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(environment, "output_of", answer)
    assert environment.ask_nvidia_smi(torch.device("cuda", 0), "driver_version,power.limit") == "580.1, 700"
    ((program, gpu, fields, _),) = asked
    assert (program, gpu, fields) == (
        "nvidia-smi",
        f"--id=GPU-{uuid}",
        "--query-gpu=driver_version,power.limit",
    )


@needs_gpu()
def test_nvidia_smi_knows_the_gpu_of_torch():
    uuid = torch.cuda.get_device_properties(0).uuid
    assert environment.ask_nvidia_smi(torch.device("cuda", 0), "uuid") == f"GPU-{uuid}"
