"""Joins a group of processes that somebody else starts, and does not wait for ever."""

import socket
from datetime import timedelta

import pytest

from pipeline.distributed import processes
from pipeline.errors import TrainingError
from tests.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("process_state")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("rank", [0, 1])
def test_others_that_never_start(
    rank: int, port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(processes, "_MEETING_TIMEOUT", timedelta(seconds=1))
    world = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in world.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(TrainingError, match=rf"1 s .*WORLD_SIZE.*127\.0\.0\.1:{port}.*unset RANK WORLD_SIZE"):
        processes.connect(tiny_config())
    assert "at most 1 s for all 2 processes" in capsys.readouterr().err


def test_variables_left_over_by_another_launcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """accelerate alone would fail for lack of an address."""
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert processes.connect(tiny_config()).shard.world_size == 1
    warning = capsys.readouterr().err
    assert "LOCAL_RANK, OMPI_COMM_WORLD_SIZE" in warning and "trains alone" in warning
