"""The documents show only commands, recipes, keys, files and links that exist; the front page is short."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, OTHERS
from benchmarks.charts.figures import FIGURES
from benchmarks.publish.readme import FILES
from pipeline.__main__ import _parser
from pipeline.config import load_config
from tests.python import ROOT

FRONT_PAGE = ROOT / "README.md"
STARTS = ("./launch.sh", "python -m pipeline", "accelerate launch", "python -m benchmarks", "sbatch")
LAUNCH_VERBS = {"test", "lock", "bench", "sweep", "-h"}  # the verbs of launch.sh itself
PLACEHOLDER = re.compile(r"[A-Z]{3,}|…|\.\.\.|yours")
MAX_LINES, MAX_WIDTH = 150, 110


def documents() -> list[Path]:
    """All Markdown files of the project."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("*/**/README.md")]
    hidden_or_written_by_runs = re.compile(r"\..*|runs|data|build")
    return sorted(
        path for path in paths if not hidden_or_written_by_runs.fullmatch(path.relative_to(ROOT).parts[0])
    )


def commands(*paths: Path) -> list[str]:
    found = []
    for path in paths or documents():
        text = path.read_text().replace("\\\n", " ")  # a command may continue in the next line
        blocks = re.findall(r"^```\n(.*?)^```", text, re.S | re.M)
        lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
        spans = [span for line in text.splitlines() for span in re.findall(r"`([^`]+)`", line)]
        found += [command for command in lines + spans if command.startswith(STARTS)]
    return sorted(set(found))


def verb(command: str) -> str:
    """The verb of launch.sh or of a module; empty if the command trains a recipe."""
    words = command.split()
    of_python = words[1:3] in (["-m", "pipeline"], ["-m", "benchmarks"])
    rest = words[1:] if words[0] == "./launch.sh" else words[3:] if of_python else []
    first = rest[0] if rest else ""
    return "" if PLACEHOLDER.search(first) or "/" in first or "=" in first else first


def pipeline_commands() -> set[str]:
    actions = [action for action in _parser()._actions if action.choices is not None]
    return {name for action in actions for name in action.choices or ()}


def test_there_are_commands_to_test() -> None:
    assert {"./launch.sh", "./launch.sh test"} <= set(commands(FRONT_PAGE))


def test_every_command_is_shown() -> None:
    """The front page and `./launch.sh -h` show all commands; benchmarks/README.md shows the benchmarks."""
    launch = (ROOT / "launch.sh").read_text()
    listed = re.findall(
        r"[\w-]+", launch.partition("`python -m pipeline COMMAND`:")[2].partition("./launch.sh")[0]
    )
    assert set(listed) == pipeline_commands() - {"train"}
    assert {verb(command) for command in commands(FRONT_PAGE)} >= {*listed, "test", "bench", "sweep"}
    shown = re.findall(r"^\| `(?:bench )?([\w-]+)[ `]", (ROOT / "benchmarks/README.md").read_text(), re.M)
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
    if verb(command):
        of_benchmarks = command.startswith("python -m benchmarks")
        known = {*BENCHMARKS, *OTHERS} if of_benchmarks else pipeline_commands() | LAUNCH_VERBS
        assert verb(command) in known, f"{verb(command)} is no command"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if not name.startswith("https://"):
            linked = path.parent / name if name else path
            assert linked.exists(), f"{path}: {target} does not exist"
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if anchor else []
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert not anchor or anchor in slugs, f"{path}: {target} has no such heading"
    rooms = "|".join(("pipeline", "kernels", "benchmarks", "configs", "tests"))
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+)`", text):
        assert PLACEHOLDER.search(name) or (ROOT / name).exists(), f"{path}: {name} does not exist"


def test_the_front_page_is_short() -> None:
    assert len(FRONT_PAGE.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "path",
    [path for path in documents() if path.parent.name not in ("kernels", "tests")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_prose_fits_the_width_of_the_code(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    wide = [number for number, line in lines if len(line) > MAX_WIDTH and not line.startswith(("|", "!["))]
    assert not wide, f"{path}: lines {wide} have more than {MAX_WIDTH} characters"


def test_every_table_of_records_stands_once() -> None:
    """A figure may stand on the front page too."""
    places = [re.findall(r"<!-- benchmarks:(\w+) -->", path.read_text()) for path in FILES]
    assert all(len(names) == len(set(names)) for names in places)
    assert set(places[0]) & set(places[1]) <= FIGURES.keys()
