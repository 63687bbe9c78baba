"""Tests a program of others that trains in turn with ours."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.programs import PeerProgram
from tests.patience import PATIENCE_S

RUN_S = 0.25
PROGRAM = f"""
print("| run | epoch | train_acc | val_acc | tta_val_acc | time_seconds |")
while True:
    print("| 0 | eval | 0.95 | 0.93 | 0.94 | {RUN_S} |")
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[PeerProgram]:
    path = tmp_path / "peer.py"
    path.write_text(PROGRAM, encoding="utf-8")
    peer = PeerProgram("peer", path, tmp_path)
    yield peer
    peer.close()


def test_the_gpu_is_left_to_others_when_a_stopped_program_has_rested(program: PeerProgram):
    """Its host is stopped at once, but its GPU may have a whole run still to do."""
    naps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", naps.append)
        program.take(3)
    assert [run.seconds for run in program.runs] == [RUN_S] * 3
    assert sum(naps) >= 2 * RUN_S
    assert program._process is not None
    process, end = psutil.Process(program._process.pid), time.monotonic() + PATIENCE_S
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < end:
        time.sleep(0.01)
    assert process.status() == psutil.STATUS_STOPPED
