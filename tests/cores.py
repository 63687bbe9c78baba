"""Pretends that this process has a number of CPU cores."""

import os

import pytest

from pipeline.process import cores


def set_cores(monkeypatch: pytest.MonkeyPatch, number: int, limit: float | None = None) -> None:
    """Let the process run on this number of cores, with a limit of CPU time or without."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)))
    monkeypatch.setattr(cores, "_limits", lambda: [] if limit is None else [limit])
