"""Checks the folder of what libraries keep between runs."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.process.cache_dirs import cache_folder, make_cache_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Be a user without a name and HOME, as in containers; return the folder of temporary files."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home_folder(homeless: Path):
    assert cache_folder() == homeless / f"quickres-{os.getuid()}"
    make_cache_folder()
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_a_folder_of_somebody_else(homeless: Path, monkeypatch: pytest.MonkeyPatch):
    make_cache_folder()
    owner = cache_folder().stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    (homeless / f"quickres-{owner}").rename(cache_folder())
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        make_cache_folder()


def test_a_home_folder_and_a_chosen_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/quickres")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/quickres")
