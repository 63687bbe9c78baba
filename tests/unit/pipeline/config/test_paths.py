"""Checks `~` in the path keys of a recipe."""

from pathlib import Path

import pytest

from pipeline.config import path_of
from pipeline.config.paths import is_utf8
from pipeline.errors import UserError


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert path_of("data.root", "~/images") == Path("/home/somebody/images")
    assert path_of("data.root", "a/~b") == Path("a/~b")


@pytest.mark.parametrize("path", ["~nosuchuser/images", "~nosuchuser"])
def test_a_home_folder_that_is_not_known(path: str):
    with pytest.raises(UserError, match=r"^log\.dir: .*~nosuchuser.*without ~"):
        path_of("log.dir", path)


def test_a_user_without_name_and_home(monkeypatch: pytest.MonkeyPatch):
    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UserError, match=r"^data\.root: .*without ~"):
        path_of("data.root", "~/images")


@pytest.mark.parametrize(("name", "expected"), [("a", True), ("caf\u00e9", True), ("caf\udce9", False)])
def test_names_that_are_not_utf_8(name: str, expected: bool):
    assert is_utf8(name) is expected
