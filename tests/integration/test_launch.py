"""Checks launch.sh in a checkout of stand-ins: arguments, processes, exit codes and signals."""

import json
import os
import pty
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.integration.checkout import CORES, Checkout, write
from tests.patience import PATIENCE_S, wait_until
from tests.python import ROOT


@pytest.fixture
def waiting(checkout: Checkout, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """Start a run and wait for its training loop; none of its processes may outlive the test."""
    # detached.yaml leaves the launcher, which exists for two processes only
    process = checkout.start(request.param, NUM_PROCESSES="2" if request.param == "detached.yaml" else "1")
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        assert line, "the run ended before it was ready"
    trainer = int((checkout.root / "trainer.pid").read_text())
    yield process
    process.kill()
    process.communicate()
    assert not psutil.pid_exists(trainer) or psutil.Process(trainer).status() == psutil.STATUS_ZOMBIE


def test_help_needs_nothing(tmp_path: Path):
    shutil.copy(ROOT / "launch.sh", tmp_path)
    result = subprocess.run(
        [tmp_path / "launch.sh", "-h"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
    )
    assert len(result.stdout.splitlines()) <= 24
    assert max(map(len, result.stdout.splitlines())) <= 110
    assert [path.name for path in tmp_path.iterdir()] == ["launch.sh"]


def test_the_exit_of_a_run_is_timed(checkout: Checkout):
    """Also one whose path holds blanks. The run ends 0.3 s after the last time that it has written."""
    assert checkout.run("finishes.yaml").returncode == 0
    timeline = json.loads((checkout.root / "a run/result.json").read_text())["timeline"]
    assert 0.3 <= timeline["exit"] < PATIENCE_S


@pytest.mark.parametrize(
    ("gpus", "visible", "asked", "device", "hardware", "processes"),
    [
        (0, None, None, "auto", "cpu", 1),
        (0, None, "2", "auto", "cpu", 2),
        (0, None, "3", "cpu", "cpu", 3),
        (0, None, None, "gpu", "gpu", 1),
        (1, None, None, "auto", "gpu", 1),
        (4, None, None, "gpu", "gpu", 4),
        (4, None, "1", "auto", "gpu", 1),
        (4, "2,3", None, "auto", "gpu", 2),
        (4, "1,7,2", None, "auto", "gpu", 1),
        (4, "GPU-2,GPU-3", None, "auto", "gpu", 2),
        (4, "", None, "auto", "cpu", 1),
        (4, "-1", "2", "auto", "cpu", 2),
        (4, None, None, "cpu", "cpu", 1),
    ],
)
def test_processes_and_devices(
    checkout: Checkout,
    gpus: int,
    visible: str | None,
    asked: str | None,
    device: str,
    hardware: str,
    processes: int,
):
    checkout.set_gpus(gpus)
    variables = {"CUDA_VISIBLE_DEVICES": visible, "NUM_PROCESSES": asked}
    given = {key: value for key, value in variables.items() if value is not None}
    before = time.time()
    result = checkout.run("recipe.yaml", f"runtime.device={device}", **given)
    assert result.returncode == 0, result.stderr
    number, _, threads, started, is_terminal, override = result.stdout.splitlines()[0].split()
    assert (number, is_terminal, override) == (str(processes), "False", f"runtime.device={device}")
    assert before <= float(started) <= time.time()
    where = "on the CPU" if hardware == "cpu" else "on the GPU" if processes == 1 else "on one GPU each"
    assert f"processes: {processes}, {where};" in result.stderr
    if processes == 1:  # started without the launcher
        assert (checkout.launched(), threads) == ({}, str(CORES))
    else:
        assert checkout.launched() == {
            "--config_file": f"configs/accelerate/{hardware}2.yaml",
            "--num_processes": str(processes),
            "--num_cpu_threads_per_process": str(max(CORES // processes, 1)),
        }


@pytest.mark.parametrize(
    ("asked", "message"), [("0", "whole number"), ("two", "whole number"), ("3", "2 GPUs")]
)
def test_impossible_numbers_of_processes(checkout: Checkout, asked: str, message: str):
    checkout.set_gpus(2)
    result = checkout.run(NUM_PROCESSES=asked)
    assert result.returncode == 2
    assert f"NUM_PROCESSES={asked}" in result.stderr and message in result.stderr


def test_a_dry_run_is_one_process_that_plans_for_all(checkout: Checkout):
    checkout.set_gpus(2)
    result = checkout.run("recipe.yaml", "seed=1", "--dry-run")
    assert result.returncode == 0, result.stderr
    # of two processes, and no launcher has set WORLD_SIZE
    assert result.stdout.splitlines()[0].split()[:2] == ["2", "-"]
    assert checkout.launched() == {}
    assert (checkout.root / "trainer.argv").read_text().split("\n") == ["recipe.yaml", "seed=1", "--dry-run"]


def test_arguments(checkout: Checkout):
    assert "command evaluate runs/latest" in checkout.run("evaluate", "runs/latest").stdout
    for arguments in ((), ("seed=1",), ("configs/a b.yaml",), ("train", "configs/a b.yaml", "seed=1")):
        assert checkout.run(*arguments).returncode == 0
        recipe, *overrides = (checkout.root / "trainer.argv").read_text().split("\n")
        default = not arguments or "=" in arguments[0]
        assert recipe == ("configs/quickstart.yaml" if default else "configs/a b.yaml")
        assert overrides == [argument for argument in arguments if "=" in argument]
    assert checkout.run("--frobnicate").returncode == 2
    assert checkout.run("recipe.yaml", OMP_NUM_THREADS="5").stdout.split()[2] == "5"
    assert checkout.run("recipe.yaml", OMP_NUM_THREADS="5", NUM_PROCESSES="2").returncode == 0
    assert checkout.launched()["--num_cpu_threads_per_process"] == "5"


@pytest.mark.parametrize("threads", ["", "5"])
def test_the_trainer_hears_what_the_user_has_set(checkout: Checkout, threads: str):
    """Without the user's choice it may take fewer threads than there are cores."""
    result = checkout.run("recipe.yaml", OMP_NUM_THREADS=threads, QUICKRES_USER_THREADS="7")
    assert result.stdout.split()[2] == (threads or str(CORES))
    assert (checkout.root / "user.threads").read_text() == threads


@pytest.mark.parametrize("threads", ["x", "0", "-1", "1.5"])
def test_an_impossible_number_of_threads(checkout: Checkout, threads: str):
    result = checkout.run(OMP_NUM_THREADS=threads)
    assert result.returncode == 2
    assert f"OMP_NUM_THREADS={threads}" in result.stderr and "whole number" in result.stderr
    assert not (checkout.root / "trainer.argv").exists()


@pytest.mark.parametrize("shell", ["sh", "bash --posix"])
def test_another_shell(checkout: Checkout, shell: str):
    assert checkout.shell(f"{shell} launch.sh recipe.yaml").returncode == 0
    assert (checkout.root / "trainer.argv").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("is_pipe", [True, False])
def test_a_recipe_without_a_file_is_read_once(checkout: Checkout, processes: str, is_pipe: bool):
    """The check would drink the pipe, and the run has no standard input at all."""
    (checkout.root / "text").write_text("seed: 3\n\nduration: 1ep\n")
    source = "cat text |" if is_pipe else "<text"
    result = checkout.shell(f"{source} ./launch.sh /dev/stdin", NUM_PROCESSES=processes)
    assert result.returncode == 0, result.stderr
    handed_over = (checkout.root / "recipe.text").read_text()
    assert handed_over == "/dev/stdin\nseed: 3\n\nduration: 1ep"
    assert (checkout.root / "trainer.argv").read_text() == "/dev/stdin"


def test_a_pipe_for_the_benchmarks(checkout: Checkout):
    write(checkout.root / "benchmarks.py", "import os\nprint(os.environ['QUICKRES_RECIPE'])\n")
    result = checkout.shell("echo seed: 3 | ./launch.sh bench /dev/stdin")
    assert result.stdout == "/dev/stdin\nseed: 3\n"


def test_a_pipe_that_does_not_end(checkout: Checkout):
    result = checkout.shell("yes | ./launch.sh /dev/stdin")
    assert result.returncode == 2
    assert "/dev/stdin" in result.stderr and "longer than" in result.stderr


def test_the_length_of_a_pipe_is_counted_in_bytes(checkout: Checkout):
    (checkout.root / "text").write_text("# é\n" * 22_000, "utf-8")  # 110,000 bytes, 88,000 characters
    result = checkout.shell("./launch.sh /dev/stdin <text", LC_ALL="C.UTF-8")
    assert result.returncode == 2 and "longer than" in result.stderr


def test_a_process_of_a_world_that_somebody_else_starts(checkout: Checkout):
    checkout.set_gpus(4)
    world = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "first", "MASTER_PORT": "29500"}
    result = checkout.run("recipe.yaml", **world)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:2] == ["2", "2"]
    assert checkout.launched() == {}
    assert "process 1 of 2" in result.stderr
    refused = checkout.run("recipe.yaml", **world, NUM_PROCESSES="2")
    assert refused.returncode == 2
    assert "NUM_PROCESSES=2" in refused.stderr and "unset" in refused.stderr


@pytest.mark.parametrize(
    "world", [{"RANK": "1"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0"}]
)
def test_what_is_no_world_changes_nothing(checkout: Checkout, world: dict[str, str]):
    checkout.set_gpus(2)
    assert checkout.run("recipe.yaml", **world, MASTER_ADDR="first").returncode == 0
    assert checkout.launched()["--num_processes"] == "2"


def test_tests_run_on_all_cores_unless_the_user_says_otherwise(checkout: Checkout):
    write(checkout.root / "pytest.py", "import sys\nprint(*sys.argv[1:])\n")
    assert (
        checkout.run("test", "tests/unit", "-n", "0").stdout == "-n auto --dist worksteal tests/unit -n 0\n"
    )


def test_a_bad_recipe_is_never_launched(checkout: Checkout):
    assert checkout.run("recipe.yaml", "unknown=1").returncode == 2
    assert not (checkout.root / "trainer.argv").exists()


@pytest.mark.parametrize(("recipe", "code"), [("works.yaml", 0), ("fails.yaml", 3), ("crashes.yaml", 9)])
def test_exit_code_is_the_trainers(checkout: Checkout, recipe: str, code: int):
    result = checkout.run(recipe)
    assert result.returncode == code
    assert code == 9 or result.stdout.splitlines()[-1] == "runs/stand-in"


@pytest.mark.parametrize("waiting", ["waits.yaml"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_trainer_and_is_waited_for(
    checkout: Checkout, waiting: subprocess.Popen[str], number: signal.Signals
):
    waiting.send_signal(number)
    waiting.send_signal(number)  # an echo, such as `timeout` sends, must not kill
    out, _ = waiting.communicate(timeout=PATIENCE_S)
    assert out.splitlines() == ["saving", "runs/stand-in"]
    assert waiting.returncode == 75


def test_an_interrupt_while_the_recipe_is_checked(checkout: Checkout):
    """Python would print a traceback, so the signal must not reach it."""
    process = checkout.start("works.yaml", "slow=1")
    wait_until((checkout.root / "checking").exists, "the recipe is checked")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal.SIGINT
    assert err.splitlines()[1:] == ["launch.sh: stopped before the start"]  # after that of the set-up
    assert not (checkout.root / "trainer.argv").exists()


@pytest.mark.parametrize("waiting", ["detached.yaml"], indirect=True)
def test_a_killed_launcher_leaves_no_run_behind(checkout: Checkout, waiting: subprocess.Popen[str]):
    trainer = psutil.Process(int((checkout.root / "trainer.pid").read_text()))
    launcher = trainer.parent()
    assert launcher is not None
    launcher.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    waiting.terminate()
    out, _ = waiting.communicate(timeout=PATIENCE_S)
    assert out.splitlines() == ["saving", "runs/stand-in"]
    assert waiting.returncode == 128 + signal.SIGTERM  # the trainer's own code is lost with its parent


@pytest.mark.parametrize("waiting", ["hangs.yaml"], indirect=True)
def test_a_trainer_that_dies_of_the_signal(waiting: subprocess.Popen[str]):
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 128 + signal.SIGINT


@pytest.mark.parametrize("waiting", ["stubborn.yaml"], indirect=True)
def test_a_second_signal_kills_all(checkout: Checkout, waiting: subprocess.Popen[str]):
    waiting.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(2.5)  # the trainer, and its child in another session, ignore the first signal
    # within 2 s after launch.sh has received the first signal, another counts as its echo
    wait_until(lambda: waiting.poll() is not None or waiting.send_signal(signal.SIGINT), "launch.sh ends")
    waiting.communicate()
    assert waiting.returncode == 128 + signal.SIGTERM


def test_control_c_at_a_terminal(checkout: Checkout):
    terminal, inner = pty.openpty()
    command = ["setsid", "--ctty", checkout.root / "launch.sh", "waits.yaml"]
    with subprocess.Popen(
        command, env=checkout.environment(), stdin=inner, stdout=inner, stderr=inner
    ) as process:
        os.close(inner)
        shown = b""
        while b"ready" not in shown:
            shown += os.read(terminal, 4096)
        assert b" True" in shown  # the trainer's output is a terminal
        os.write(terminal, b"\x03")
        while b"runs/stand-in" not in shown:
            shown += os.read(terminal, 4096)
        assert process.wait(PATIENCE_S) == 75
    os.close(terminal)
    assert b"Terminated" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_through_accelerate(checkout: Checkout, processes: int):
    checkout.use_real_accelerate()
    result = checkout.run("works.yaml", NUM_PROCESSES=str(processes), OMP_NUM_THREADS="3")
    assert result.returncode == 0, result.stderr
    numbers = [line.split()[:3] for line in result.stdout.splitlines() if line.endswith("False")]
    assert numbers == [[str(processes), "2" if processes == 2 else "-", "3"]] * processes
    assert [line for line in result.stderr.splitlines() if not line.startswith("launch.sh: ")] == []


@pytest.mark.slow
def test_a_signal_through_torchrun(checkout: Checkout):
    checkout.use_real_accelerate()
    process = checkout.start("waits.yaml", NUM_PROCESSES="2", OMP_NUM_THREADS="1")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert lines.count("ready\n") == 2
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, err
    assert out.splitlines().count("runs/stand-in") == 2
