"""Reads recipes that are no files on a disk, and refuses those without a key."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.config.yaml_reader import MAX_RECIPE_BYTES
from pipeline.errors import UserError


@pytest.mark.parametrize("text", ["", "\n\n", "# a comment\n", "{}\n"])
def test_a_recipe_without_a_key_is_an_error(text: str, tmp_path: Path):
    """It would train all defaults: a network and a data set that nobody has asked for."""
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml: empty; .*configs/quickstart\.yaml"):
        load_config(tmp_path / "recipe.yaml", ["seed=1"])


@pytest.fixture
def pipe(tmp_path: Path):
    """Return a function that lets a pipe end with this text."""
    path, writers = tmp_path / "pipe", []
    os.mkfifo(path)

    def fill(text: str) -> Path:
        writers.append(subprocess.Popen(["sh", "-c", 'printf %s "$1" >"$2"', "write", text, path]))
        return path

    yield fill
    for writer in writers:
        writer.kill()
        writer.wait()


def test_a_pipe(pipe):
    assert load_config(pipe("seed: 7\n")).seed == 7


def test_a_pipe_is_read_no_further_than_a_recipe_may_be_long():
    with pytest.raises(UserError, match=f"/dev/zero: larger than {MAX_RECIPE_BYTES}"):
        load_config("/dev/zero")


def test_what_launch_sh_has_read_of_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its name: other recipes, such as the one that a run has kept, are read from their files."""
    (tmp_path / "recipe.yaml").write_text("seed: 7\n")
    monkeypatch.setenv("QUICKRES_RECIPE", "/dev/stdin\nmodel:\n  name: resnet32\n")
    assert load_config("/dev/stdin").model.name == "resnet32"
    assert load_config(tmp_path / "recipe.yaml").seed == 7
    monkeypatch.setenv("QUICKRES_RECIPE", "/dev/stdin\nmodel:\n\n  nmae: resnet32\n")
    with pytest.raises(UserError, match=r"/dev/stdin:3: .*model\.nmae"):
        load_config("/dev/stdin")
