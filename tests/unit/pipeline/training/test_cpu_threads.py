"""Checks the number of threads that a training sets in torch."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.atomic_io import write_json
from pipeline.process.other_programs import OtherPrograms
from pipeline.run.folder import RunFolder
from pipeline.training.cpu_threads import set_threads, threads_restored
from tests.cores import set_cores


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give torch four threads on four cores, two of which another program uses."""
    for name in ("OMP_NUM_THREADS", "QUICKRES_USER_THREADS"):
        monkeypatch.delenv(name, raising=False)
    set_cores(monkeypatch, 4)
    monkeypatch.setattr(OtherPrograms, "num_cores", lambda _: 2.0)
    with threads_restored():
        torch.set_num_threads(4)
        yield


def _processes(device: str = "cpu", world_size: int = 1) -> Any:
    return SimpleNamespace(device=torch.device(device), shard=SimpleNamespace(world_size=world_size))


def _run(path: Path, *numbers: int | None) -> RunFolder:
    """Return a run that was begun and continued with these numbers of threads."""
    first, *others = [{} if number is None else {"cpu_threads": number} for number in numbers]
    run = RunFolder(path)
    write_json(run.environment, {**first, "continued": others})
    return run


def test_a_training_leaves_the_cores_of_others_and_the_caller_s_number():
    with threads_restored():
        count = set_threads(_processes(), OtherPrograms())
        assert count is not None and count.number == torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("processes", [_processes("cuda"), _processes(world_size=2)], ids=["GPU", "two"])
def test_where_nothing_is_set(processes: Any):
    assert set_threads(processes, OtherPrograms()) is None
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("numbers", "expected"), [((3,), 3), ((1,), 1), ((4, 3), 3), ((None,), 4)], ids=str)
def test_a_continued_run_computes_as_before(tmp_path: Path, numbers: tuple[int | None, ...], expected: int):
    """Runs of older versions recorded no number, and had a thread for each core."""
    count = set_threads(_processes(), OtherPrograms(), _run(tmp_path, *numbers))
    assert count is not None and count.number == torch.get_num_threads() == expected
    assert bool(count.reason) == (expected != 4)


def test_a_run_without_a_readable_record(tmp_path: Path):
    run = RunFolder(tmp_path)
    run.environment.write_text("{")
    count = set_threads(_processes(), OtherPrograms(), run)
    assert count is not None and count.number == 4
