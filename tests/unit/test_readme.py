"""Every command that the READMEs show is one that works: its recipe loads, its keys exist, its name is known."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, OTHERS
from pipeline.__main__ import _parser
from pipeline.config import load_config

ROOT = Path(__file__).parents[2]
STARTS = ("./launch.sh", "python -m pipeline", "accelerate launch", "python -m benchmarks")
OWN = {"test", "lock", "bench", "sweep", "-h"}  # what launch.sh does itself
PLACEHOLDER = re.compile(r"[A-Z]{3,}|…|\.\.\.|yours")


def commands() -> list[str]:
    found = []
    for readme in sorted(
        path
        for path in ROOT.glob("**/README.md")
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ):
        text = readme.read_text().replace("\\\n", " ")  # a command may go on in the next line
        lines = [
            line.split("#")[0].strip()
            for block in re.findall(r"```\n(.*?)```", text, re.S)
            for line in block.splitlines()
        ]
        spans = [span for line in text.splitlines() for span in re.findall(r"`([^`]+)`", line)]
        found += [command for command in lines + spans if command.startswith(STARTS)]
    return sorted(set(found))


def pipeline_commands() -> set[str]:
    actions = [action for action in _parser()._actions if action.choices is not None]
    return {name for action in actions for name in action.choices or ()}


def test_there_are_commands_to_test() -> None:
    assert "./launch.sh" in commands() and "./launch.sh test" in commands()


def test_every_command_is_shown() -> None:
    """In the README and by `./launch.sh -h`, where `train` goes without its name; those of the benchmarks in theirs."""
    readme, launch = ((ROOT / name).read_text() for name in ("README.md", "launch.sh"))
    listed = re.findall(
        r"[\w-]+", launch.partition("`python -m pipeline COMMAND`:")[2].partition("./launch.sh")[0]
    )
    assert set(listed) == pipeline_commands() - {"train"}
    assert [name for name in listed if f"`python -m pipeline {name}" not in readme] == []
    shown = re.findall(r"^\| `(?:bench )?([\w-]+)", (ROOT / "benchmarks/README.md").read_text(), re.M)
    assert set(shown) == {*BENCHMARKS, *OTHERS}


@pytest.mark.parametrize("command", commands())
def test_a_shown_command_exists(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    recipes = [
        word
        for word in words
        if word.startswith("configs/") and word.endswith(".yaml") and "accelerate/" not in word
    ]
    overrides = [
        word for word in words if re.fullmatch(r"[a-z_.]+=\S+", word) and not PLACEHOLDER.search(word)
    ]
    for word in words:
        if word.startswith("configs/") and not PLACEHOLDER.search(word):
            assert (ROOT / word).is_file(), f"{word} does not exist"
    if recipes and not PLACEHOLDER.search(recipes[0]) and "sweeps/" not in recipes[0]:
        load_config(ROOT / recipes[0], overrides)
    after = (
        words[1:]
        if words[0] == "./launch.sh"
        else words[3:]
        if words[:3] == ["python", "-m", "pipeline"]
        else []
    )
    first = after[0] if after else ""
    if first and not PLACEHOLDER.search(first) and "/" not in first and "=" not in first:
        assert first in pipeline_commands() | OWN, f"{first} is no command"
