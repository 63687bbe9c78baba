"""Checks how the threads of torch wait, in new processes: OpenMP reads its variables when it is loaded."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.process.threads import wait_briefly
from tests.tiny import ROOT

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# a program, stopped as it reads its arguments, before it loads torch
_PROGRAM = """
import argparse, json, os, runpy, sys

def tell(*_):
    print(json.dumps(["torch" in sys.modules, os.environ.get("GOMP_SPINCOUNT")]), flush=True)
    os._exit(0)

argparse.ArgumentParser.parse_intermixed_args = argparse.ArgumentParser.parse_known_args = tell
name, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("chosen", [None, *_NAMES])
def test_the_user_s_choice_stays(chosen: str | None, monkeypatch: pytest.MonkeyPatch):
    if chosen is not None:
        monkeypatch.setenv(chosen, "7")
    before = dict(os.environ)
    wait_briefly()
    added = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
    assert dict(os.environ) == before | ({} if chosen is not None else added)


@pytest.mark.parametrize("words", ["pipeline check", "pipeline.train", "benchmarks step"])
def test_every_program_chooses_before_torch_is_loaded(words: str):
    command = [sys.executable, "-c", _PROGRAM, *words.split(), "configs/quickstart.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, "3000"]
