"""Checks commands, messages and exit codes of the command line."""

import re
from pathlib import Path

import pytest
import torch

from pipeline import __main__ as cli
from pipeline import train
from pipeline.errors import OutOfMemory, Preempted, TrainingError, UserError
from pipeline.process.cores import usable_cores
from tests.python import ROOT, run_python
from tests.tiny import RECIPE

pytestmark = pytest.mark.usefixtures("process_state")
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    listed = [
        line[4:].split()[0] for line in capsys.readouterr().out.splitlines() if re.match(r"    \w", line)
    ]
    for command in (
        *("train", "evaluate", "explain", "predict", "export", "report"),
        *("check", "check-data", "summary", "lr-find", "config-reference"),
    ):
        assert command in listed


def test_config_reference_of_a_word(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config-reference", "hang_timeout"]) == 0
    assert [line.split("|")[1] for line in capsys.readouterr().out.splitlines()[2:]] == [
        " `runtime.hang_timeout_s` "
    ]
    assert cli.main(["config-reference", "optimizer.momentun"]) == 2
    assert capsys.readouterr().err == (
        "error: no key or meaning holds 'optimizer.momentun'; did you mean optimizer.momentum?\n"
    )


def test_check_warns_and_says_valid(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", QUICKSTART, "optimizer.name=adamw", "augment.cutout_mode=inside"]) == 0
    assert capsys.readouterr() == (f"{QUICKSTART}: valid\n", "")
    assert cli.main(["check", QUICKSTART, "augment.cutout=0", "augment.cutout_mode=inside"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{QUICKSTART}: valid\n" and len(err.splitlines()) == 1
    assert err.startswith(
        "warning: command line: augment.cutout_mode has no effect while augment.cutout is 0"
    )


def test_check_prints_the_warnings_of_the_plan(capsys: pytest.CaptureFixture[str]):
    keys = ["schedule.name=step", "schedule.milestones=[1ep, 30ep]", "duration=20ep"]
    keys += ["precision.mode=fp16", "runtime.device=cpu"]
    assert cli.main(["check", QUICKSTART, *keys]) == 0
    late, slow = (line for line in capsys.readouterr().err.splitlines() if "passed over" not in line)
    assert late.startswith("warning: schedule.milestones: 30ep ") and "20ep" in late
    assert slow.startswith("warning: fp16 on the CPU") and "precision.mode=bf16" in slow


@pytest.mark.parametrize("place", ["folder", "file/picture.png", "/dev/null"])
@pytest.mark.parametrize(
    "command",
    [
        ["lr-find", QUICKSTART, "--output"],
        ["summary", QUICKSTART, "--picture"],
        ["explain", "runs/nowhere", "--output"],
        ["report", "runs/nowhere", "--output"],
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert cli.main([*command, str(tmp_path / place)]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning"))
    assert line.startswith(f"error: {command[-1]}: ")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("place", ["file", "file/folder", "/dev/null"])
@pytest.mark.parametrize(
    "command",
    [["export", "runs/nowhere", "--format", "onnx", "--output"], ["check-data", "nowhere", "--out"]],
)
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    command: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert cli.main([*command, str(tmp_path / place)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {command[-1]}: ") and "another place" in line


def test_config_reference(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["config-reference"]) == 0
    assert "\n| `optimizer.lr` | float, > 0, ≤ 10000 | `0.1` | " in capsys.readouterr().out


def test_check(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", QUICKSTART, "seed=3"]) == 0
    assert cli.main(["check", QUICKSTART, "--for-launcher", "runtime.device=cpu"]) == 0
    assert cli.main(["check", "--for-launcher", QUICKSTART]) == 0
    cores = usable_cores()
    assert capsys.readouterr().out == f"{QUICKSTART}: valid\ncpu {cores}\nauto {cores}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", QUICKSTART, "modle.name=resnet18"], "command line: .*modle; did you mean model?"),
        (["check", "nowhere.yaml"], "nowhere.yaml: "),
        (["check", "--processes", "3", QUICKSTART], "data.batch_size: .*64 .*3 processes"),
        (["check", QUICKSTART, "--processes", "2", "optimizer.accumulate=3"], "64 .*6 micro-batches"),
        (["check", QUICKSTART, "--dry-run"], "--dry-run .*pipeline train .*--dry-run"),
        (["check", QUICKSTART, "--profile"], "--profile .*pipeline train .*--profile"),
        (["train", QUICKSTART, "optimizer.lr=-1"], "command line: optimizer.lr"),
        (["evaluate", "runs/nowhere"], "runs/nowhere: .*run folder"),
        (["explain", "runs/nowhere"], "runs/nowhere: .*run folder"),
        (["predict", "runs/nowhere", "a.png"], "runs/nowhere: .*run folder"),
        (["export", "runs/nowhere", "--format", "onnx"], "runs/nowhere: .*run folder"),
    ],
)
def test_a_user_s_error_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["check"],
        ["check", "--processes", "none", QUICKSTART],
        ["check", "--processes", "0", QUICKSTART],
        ["summary", "--depth", "0", QUICKSTART],
        ["lr-find", "--steps", "5", QUICKSTART],
        ["lr-find", "--steps", "200000", QUICKSTART],
        ["predict", "runs/latest"],
        ["predict", "runs/latest", "a.png", "--top", "0"],
        ["export", "runs/latest", "--format", "pickle"],
        ["explain", "runs/latest", "--count", "many"],
        ["explain", "runs/latest", "--indices", "3,x"],
        ["explain", "runs/latest", "--indices", "3", "--files", "a.png"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "usage: python -m pipeline" in error and "invalid _" not in error  # argparse names our functions
    assert len(error) < 2000  # argparse would list all choices of a range
    assert "required: run, key=value" not in error and "required: config, key=value" not in error


@pytest.mark.parametrize("module", [["pipeline.train"], ["pipeline", "check"]])
def test_the_process_exits_with_2(module: list[str], tmp_path: Path):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("seed: 1\nmodel:\n  nmae: resnet20\n")
    done = run_python("-W", "error", "-m", *module, str(recipe), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {recipe}:3: ") and "model.nmae" in line and "model.name?" in line


# --- errors in training ---------------------------------------------------------------


def run(error: BaseException | None, monkeypatch: pytest.MonkeyPatch, rank: int | None = None) -> int:
    """Return the exit code of a run that ends with this error; of two processes if the rank is given."""

    def end(*_: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(train, "train", end)
    if rank is not None:
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        for name, value in {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}.items():
            monkeypatch.setenv(name, str(value))
    return train.main([str(RECIPE)])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (UserError("data.root: no"), 2, "error: data.root: no\n"),
        (TrainingError("loss is nan"), 1, "error: loss is nan\n"),
        (OutOfMemory("too big"), 1, "error: too big\n"),
        (Preempted("by signal 15"), 75, "stopped: by signal 15\n"),
    ],
)
def test_exit_codes(
    error: BaseException | None,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert run(error, monkeypatch) == code
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback_and_is_exit_code_1(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError(), monkeypatch)


def test_other_processes_repeat_no_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(UserError("reported by rank 0"), monkeypatch, rank=1) == 2
    assert capsys.readouterr().err == ""


def test_a_process_that_alone_ran_out_of_memory_reports_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(OutOfMemory("on this GPU"), monkeypatch, rank=1) == 1
    assert capsys.readouterr().err == "error: on this GPU\n"


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_a_stray_variable_of_a_launcher_hides_no_message(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(variable, "1")
    assert run(UserError("data.root: no"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: data.root: no\n"


def test_out_of_memory_names_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def fit(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB\nand a long story")

    monkeypatch.setattr("pipeline.training.trainer.Trainer.fit", fit)
    keys = ["data.batch_size=64", "data.num_samples=64", "optimizer.lr=0.2"]
    assert train.main([str(RECIPE), f"log.dir={tmp_path}", *keys]) == 1
    error = capsys.readouterr().err
    assert (
        "the GPU is out of memory at data.batch_size=64 (CUDA out of memory. Tried to allocate 8 GiB)"
        in error
    )
    assert "about 32 images" in error and "optimizer.accumulate=2" in error
    assert "data.batch_size=32 with optimizer.lr=0.1" in error
    assert "a long story" not in error
