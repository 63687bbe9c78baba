"""Files are whole or not there and follow the umask; JSON is read, or refused with the name of the file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.atomic_io import follow_umask, parse_json, put_aside, read_json, write_json, write_whole
from pipeline.errors import UserError
from pipeline.plotting import style


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_follow_the_umask(tmp_path: Path, umask: int):
    private, whole, picture = (tmp_path / name for name in ("private", "whole", "picture.png"))
    private.touch(0o600)
    follow_umask(private)
    write_whole(whole, "text")
    style.save_png(style.new_figure(10, 10), picture)
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("write", [write_whole, lambda path, _: style.save_png(style.new_figure(9, 9), path)])
def test_a_file_is_on_the_disk_before_it_has_its_name(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("to the disk"), fsync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (events.append("named"), replace(a, b))[1])
    write(tmp_path / "file", "text")
    assert events == ["to the disk", "named"]


@pytest.mark.parametrize(
    "text", ["", "\0", "{", "[" * 100_000, "[" * 60 + "]" * 60, '{"a":' * 900 + "3" + "}" * 900]
)
def test_what_is_not_json_of_ours_is_refused(text: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"deeper than|line 1"):
        parse_json(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json: cannot be read \(.*\); do this"):
        read_json(tmp_path / "a.json", "do this")


def test_json_comes_back_as_it_was(tmp_path: Path):
    value = {"a": [1, None, {"b": [True, "é", 1.5, []]}], "c": {}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_what_is_put_aside_is_not_lost(tmp_path: Path):
    for number in range(3):
        (tmp_path / "a.json").write_text(str(number))
        aside = put_aside(tmp_path / "a.json")
        assert aside.read_text() == str(number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json.damaged",
        "a.json.damaged1",
        "a.json.damaged2",
    ]
