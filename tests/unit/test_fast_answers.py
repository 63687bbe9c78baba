"""Checks that commands answer in a moment if they only read arguments or a config: no slow import."""

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS as BENCHMARKS
from pipeline.__main__ import COMMANDS
from tests.python import ROOT, run_python

# one process runs the commands in turn, and tells after each which of the slow packages it has imported
_RUN_ALL = """
import contextlib, io, json, sys
from benchmarks import __main__ as benchmarks
from pipeline import __main__ as pipeline, train

programs = {"pipeline": pipeline.main, "benchmarks": benchmarks.main, "pipeline.train": train.main}
slow = ("torch", "torchvision", "matplotlib", "pytorch_grad_cam", "nvidia.dali", "accelerate", "scipy.stats")
for program, *arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = programs[program](arguments)
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, [name for name in slow if name in sys.modules]]))
"""
_RECIPE = "configs/quickstart.yaml"


def _answers(commands: list[list[str]]) -> list[tuple[int, list[str]]]:
    done = run_python("-W", "error", "-c", _RUN_ALL, json.dumps(commands), check=False)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def _helps() -> list[list[str]]:
    names = [("pipeline", name) for name in COMMANDS] + [("benchmarks", name) for name in BENCHMARKS]
    named = [[*name, "-h"] for name in names if name != ("benchmarks", "readme")]  # this one draws figures
    return [["pipeline", "-h"], ["benchmarks", "-h"], ["pipeline.train", "-h"], *named]


def test_help_imports_nothing_slow():
    commands = _helps()
    answers = _answers(commands)
    assert len(answers) == len(commands) > 25
    for command, answer in zip(commands, answers, strict=True):
        assert answer == (0, []), command


def test_checks_import_nothing_slow():
    commands = [["pipeline", "check", _RECIPE], ["pipeline", "config-reference", "lr"]]
    for command, answer in zip(commands, _answers(commands), strict=True):
        assert answer == (0, []), command


def _refused(folder: Path) -> list[list[str]]:
    absent, picture = str(folder / "absent"), str(folder / "absent.png")
    (folder / "no.zip").write_text("no archive")
    return [
        *(["pipeline", name, absent] for name in ("evaluate", "explain", "report")),
        ["pipeline", "export", absent, "--format", "onnx"],
        ["pipeline", "predict", absent, picture],
        ["pipeline", "check-data", absent],
        *(["pipeline", name, f"{absent}.yaml"] for name in ("train", "check", "summary", "lr-find")),
        *(["pipeline", name, _RECIPE, "optimizer.lx=1"] for name in ("train", "check", "summary", "lr-find")),
        ["pipeline.train", _RECIPE, f"resume={absent}"],
        ["pipeline.train", f"{absent}.yaml", "--dry-run"],
        ["benchmarks", f"{absent}.yaml"],
        ["benchmarks", "absent"],
        ["benchmarks", "step", _RECIPE, "optimizer.lx=1"],
        ["benchmarks", "sweep", f"{absent}.yaml"],
        ["benchmarks", "recipes", absent],
        ["benchmarks", "pretrained", absent],
        ["benchmarks", "make-shards", absent, str(folder / "shards")],
        ["benchmarks", "startup", "--starts", "0"],
        ["benchmarks", "neighbour", "--quick", "--pairs", "0"],
        ["benchmarks", "scaling", "--rounds", "0"],
        ["benchmarks", "time-to-accuracy", "--runs", "0"],
        ["pipeline", "tensorboard", absent],
        ["pipeline", "report", "--refresh", absent],
        ["pipeline", "evaluate", absent, "--predictions", "table.txt"],
        ["pipeline", "export", absent, "--format", "hub"],
        ["pipeline", "compile", f"{absent}.yaml"],
        ["pipeline", "compile", "--load", absent],
        ["pipeline", "compile", "--load", str(folder / "no.zip")],
        ["pipeline", "compile", _RECIPE, "compile.mode=none"],
        ["pipeline", "compile", _RECIPE, "runtime.device=cpu"],
        ["pipeline", "compile", _RECIPE, "--save", str(folder)],
    ]


def test_bad_input_is_refused_before_anything_slow_is_imported(tmp_path: Path):
    commands = _refused(tmp_path)
    for command, answer in zip(commands, _answers(commands), strict=True):
        assert answer == (2, []), command


def test_a_missing_checkpoint_and_missing_images_are_refused_as_fast(tmp_path: Path):
    from pipeline.config import dump_config, load_config

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config(ROOT / _RECIPE)))
    commands = [
        ["pipeline", "evaluate", str(run), "--checkpoint", "step-9"],
        ["pipeline", "explain", str(run), "--checkpoint", "soon"],
        ["pipeline", "predict", str(run), str(tmp_path / "absent.png")],
        ["pipeline", "evaluate", str(run), "optimizer.lx=1"],
    ]
    for command, answer in zip(commands, _answers(commands), strict=True):
        assert answer == (2, []), command


@pytest.mark.parametrize("program", ["pipeline", "benchmarks"])
def test_the_list_of_commands_needs_no_pydantic(program: str):
    code = f"import sys; from {program}.__main__ import main\ntry: main(['-h'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('pydantic', 'yaml', 'rich', 'numpy') if name in sys.modules])"
    done = run_python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]"


_PLAN = """
import sys
from pipeline.commands.dry_run import describe_plan
from pipeline.config import load_config

lines = describe_plan(load_config("configs/quickstart.yaml"), "quickstart")
while not (line := next(lines)).startswith("cache folder"):
    assert "torch" not in sys.modules, line
print("torch" in sys.modules, next(lines).split()[0])
"""


def test_a_dry_run_prints_its_plan_before_torch_is_imported():
    done = run_python("-c", _PLAN)
    assert done.stdout.splitlines() == ["False memory"]
