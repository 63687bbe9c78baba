"""Damaged files of a run stop neither its resume nor its report while a checkpoint is intact."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import __main__ as cli
from pipeline import train
from pipeline.run.checkpoint import folder_of, steps_in
from pipeline.run.folder import RunFolder
from tests.integration import scenes
from tests.integration.ranks import ranks
from tests.tiny import RECIPE, assert_equal, last_weights, only_run, read_metrics

pytestmark = pytest.mark.usefixtures("process_state")
QUIET = ("log.tensorboard=false",)
CONTENTS = {
    "empty": b"",
    "NUL": b"\0\0\0\0",
    "list": b"[]",
    "object": b"{}",
    "null": b"null",
    "number": b"3",
    "text": b'"x"',
    "continued: 3": b'{"continued": 3, "step": "3", "sha256": 3}',
    "no UTF-8": b'{"step": 1, "a": "\xff"}',
    "deep list": b"[" * 10_000 + b"]" * 10_000,
    "deep object": b'{"continued":' * 900 + b"3" + b"}" * 900,
    "folder": None,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("whole")
    assert train.main([str(RECIPE), f"log.dir={folder}", *QUIET]) == 0
    return only_run(folder)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunFolder:
    """Return a copy of the run, as it is before its result is written."""
    copy = tmp_path / "runs" / whole.name
    shutil.copytree(whole, copy)
    (copy / "result.json").unlink()
    return RunFolder(copy)


def resume(run: RunFolder, value: str = "auto", *keys: str) -> int:
    return train.main([str(RECIPE), f"log.dir={run.path.parent}", f"resume={value}", *QUIET, *keys])


def damage(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
        (path / "mine").touch()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_damaged_is_named_and_stops_nothing(
    name: str, run: RunFolder, whole: Path, capsys: pytest.CaptureFixture[str]
):
    """The newest checkpoint is damaged too, so the run continues from the one before."""
    files = [run.environment, run.inputs, run.best, run.metrics, run.result]
    files.append(folder_of(run.checkpoints, 15) / "manifest.json")
    for file in files:
        damage(file, CONTENTS[name])
    if name not in ("object", "continued: 3", "no UTF-8"):  # with such a result the run counts as finished
        assert not run.is_finished
    if run.result.is_file():
        run.result.unlink()
    assert cli.main(["report", str(run.path)]) == 0
    assert "env.json" in run.report.read_text() or name == "object"
    for checkpoint, file in (("last", run.inputs), ("best", run.best)):
        code, error = (
            cli.main(["evaluate", str(run.path), "--checkpoint", checkpoint]),
            capsys.readouterr().err,
        )
        assert code in (0, 2) and (code == 0 or error.startswith(f"error: {file}: ")), error
        assert "Traceback" not in error
    assert resume(run) == 0
    told = capsys.readouterr().out
    assert f"{folder_of(run.checkpoints, 15)}" in told and f"continuing {run.path} from step 12" in told
    assert_equal(last_weights(run.path), last_weights(whole))
    assert json.loads(run.result.read_text())["steps"] == 15 and RunFolder(run.path).is_finished
    assert [item["step"] for item in json.loads(run.environment.read_text()).get("continued", [])] == (
        [12] if name == "object" else []
    )
    if CONTENTS[name] is None:
        assert all((path.with_name(f"{path.name}.damaged") / "mine").exists() for path in files[:-1])


# --- what is refused leaves nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("model.weights=/none.pth", "model.weights: /none.pth"),
        ("model.name=torchvision/nonesuch", "nonesuch"),
    ],
)
def test_what_is_refused_leaves_nothing(
    key: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [str(RECIPE), f"log.dir={tmp_path}/runs", key]
    assert train.main(arguments) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert cli.main(["check", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("refusing", [0, 1])
def test_what_one_of_two_processes_refuses_leaves_nothing(refusing: int, tmp_path: Path):
    """Such as weights that lie on one host alone. The latest run stays the latest."""
    keys = [str(RECIPE), f"log.dir={tmp_path}/runs", *QUIET, "data.batch_size=6", "data.eval_batch_size=6"]
    with ranks(tmp_path, 2, scenes.run_with_weights_of_its_own, keys, refusing) as started:
        assert started.wait() == [2, 2]
        (error,) = started.errors
    assert error.startswith("error: model.weights: ") and not (tmp_path / "runs").exists()


def test_a_run_that_cannot_be_continued_is_left_as_it_was(run: RunFolder, capsys: pytest.CaptureFixture[str]):
    """The metrics of the steps after the checkpoint are cut off once nothing refuses the run any more."""
    shutil.rmtree(folder_of(run.checkpoints, 15))
    state = torch.load(folder_of(run.checkpoints, 12) / "state.pt", weights_only=True)
    (run.path.parent / "latest").mkdir()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert state["step"] == 12 and resume(run) == 2
    assert "latest: is a folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


# --- an earlier checkpoint ----------------------------------------------------------------------------------


def test_an_earlier_checkpoint_is_named_and_continued(
    run: RunFolder, whole: Path, capsys: pytest.CaptureFixture[str]
):
    assert resume(run, f"{run.checkpoints}/step-12") == 0
    assert f"continuing {run.path} from step 12" in capsys.readouterr().out
    assert_equal(last_weights(run.path), last_weights(whole))
    assert read_metrics(run.path) == read_metrics(whole)
    assert [path.name for path in steps_in(run.checkpoints)] == ["step-00000015", "step-00000012"]


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
):
    assert resume(run, f"{run.checkpoints}/step-00000082") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: resume: ") and "no step 82; it holds 12, 15" in error
    for name in ("step-12", "step-00000012", "12"):
        assert cli.main(["evaluate", str(run.path), "--checkpoint", name]) == 0
    for verb in (["evaluate"], ["explain"], ["export", "--format", "safetensors"], ["predict", "x.png"]):
        for name in ("step-82", "82", "step-12.tar", "-1", "9" * 30):
            command = [verb[0], str(run.path), *verb[1:], f"--checkpoint={name}"]
            assert cli.main(command) == 2
            error = capsys.readouterr().err
            assert "--checkpoint: " in error and name[-2:] in error and "12, 15" in error
