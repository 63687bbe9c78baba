"""Tests sweeps with a stand-in for the trainer, and one with the real trainer."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.sweep.plan import Plan, Question, Run, make_plan, read_plan
from benchmarks.sweep.run import Sweep, run_sweep
from pipeline.errors import EXIT_PREEMPTED, UserError
from tests.patience import wait_until
from tests.unit.benchmarks.results import make_result

QUICKSTART = "configs/quickstart.yaml"

TRAINER = """
import json, os, pathlib, signal, sys, time
given = dict(item.partition("=")[::2] for item in sys.argv[2:])
name = given["log.name"]
folder = pathlib.Path(given["log.dir"])
if given.get("optimizer.lr") == "9":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "waiting").touch()
    time.sleep(300)
if given.get("optimizer.lr") == "7" and not (folder / "repaired").exists():
    sys.exit("error: the loss is nan")
run = folder / f"{name}-20260101-000000"
run.mkdir()
seed = int(given["seed"])
result = json.loads(pathlib.Path(__file__).with_name("result.json").read_text())
result["test_accuracy"] += 0.01 * seed
result["images_per_sec"]["median"] += seed
(run / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def make_sweep(tmp_path: Path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    result = make_result(test_accuracy=0.9, train_s=2.0).to_json()
    (tmp_path / "result.json").write_text(json.dumps(result))

    def command(run: Run, base: str, processes: int) -> list[str]:
        return [sys.executable, "-S", str(tmp_path / "trainer.py"), base, *run.overrides]

    def make(jobs: int = 1, **variants: list[str]) -> Sweep:
        plan = make_plan(Question("question", QUICKSTART, variants, [0, 1], extra=[f"log.dir={tmp_path}"]))
        return Sweep(plan, jobs, command=command)

    return make


def run_quietly(sweep: Sweep) -> tuple[int, str]:
    console = Console(width=200, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        return run_sweep(sweep, console), console.export_text()


def test_a_sweep_survives_a_failed_run_and_goes_on_with_it(make_sweep: Any, tmp_path: Path):
    variants = {"plain": [], "broken": ["optimizer.lr=7"], "other": ["optimizer.lr=2"]}
    code, output = run_quietly(make_sweep(jobs=2, **variants))
    assert code == 1
    assert "broken seed 0: failed, exit code 1: error: the loss is nan" in output
    folder = tmp_path / "sweeps/question"
    table = (folder / "table.md").read_text()
    assert "| plain | – | 90.50 ± 0.71 (2) | 1,000 ± 1 (2) | 2.0 ± 0.0 (2) |  |" in table
    assert "| broken | optimizer.lr=7 |  |  |  | 2 failed |" in table
    saved = json.loads((folder / "results.json").read_text())
    assert [run["status"] for run in saved["runs"]] == ["done"] * 2 + ["failed"] * 2 + ["done"] * 2
    assert "| other | +0.00 | -3.04 to +3.04 | 0.00 (2.0) | 1 | not told apart | above 1,000,000 |" in table
    assert "| broken |  |  |  |  |  |" in table and set(saved["differences"]) == {"other"}

    (folder / "repaired").touch()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    code, output = run_quietly(make_sweep(**variants))
    assert code == 0
    assert "6 runs of configs/quickstart.yaml, 4 finished before" in output
    assert "2 at a time, which share the machine" in (folder / "table.md").read_text(), (
        "those that were kept did"
    )
    assert (folder / "table.md").read_text().splitlines()[
        2
    ] == "| run | changes | test accuracy % | images/sec | train s |"
    assert len(list(folder.glob("*/result.json"))) == 6
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def test_a_changed_config_is_trained_anew(make_sweep: Any):
    assert run_quietly(make_sweep(plain=[]))[0] == 0
    assert [outcome.status for outcome in make_sweep(plain=["optimizer.lr=2"]).outcomes] == ["waiting"] * 2
    assert [outcome.status for outcome in make_sweep(plain=[]).outcomes] == ["done"] * 2


def test_a_signal_stops_a_sweep_with_its_run(make_sweep: Any, tmp_path: Path):
    def stop_when_waiting() -> None:
        wait_until((tmp_path / "sweeps/question/waiting").exists, "the second run waits")
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_waiting, daemon=True).start()
    code, output = run_quietly(make_sweep(first=[], slow=["optimizer.lr=9"], last=["optimizer.lr=2"]))
    assert code == EXIT_PREEMPTED
    assert "slow seed 0: stopped, exit code 75" in output
    assert "goes on from here" in output
    assert len(list((tmp_path / "sweeps/question").glob("*/result.json"))) == 2


def test_a_signal_finds_a_run_gone(make_sweep: Any):
    sweep = make_sweep(first=[])
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    sweep._running[0] = ended
    with sweep._signals_handled():
        os.kill(os.getpid(), signal.SIGINT)
    assert sweep.interrupted


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path: Path):
    plan = read_plan(path)
    assert len(plan.runs) >= 2
    assert path.name in path.read_text(), "the header gives the command"


def read_text(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return read_plan(path)


def test_a_sweep_file_may_be_short(tmp_path: Path):
    plan = read_text(
        tmp_path, f"base: {QUICKSTART}\nruns: [optimizer.lr=0.3, [optimizer.lr=0.4, duration=2ep]]\n"
    )
    assert [(run.name, run.seed) for run in plan.runs] == [("lr-0.3", 0), ("lr-0.4_duration-2ep", 0)]
    assert plan.runs[1].config.duration == "2ep"
    assert plan.folder == Path("runs/sweeps/sweep")
    named = read_text(
        tmp_path, f"base: {QUICKSTART}\noverrides: duration=3ep\nruns:\n  as-it-is:\n  longer: duration=4ep\n"
    )
    assert [run.config.duration for run in named.runs] == ["3ep", "4ep"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("runs: {a: []}", ["sweep.yaml: base: "]),
        (
            f"base: {QUICKSTART}\noverides: []\nruns: {{a: []}}",
            ["sweep.yaml:2: ", "overides", "did you mean overrides?"],
        ),
        (
            f"base: {QUICKSTART}\nseeds: [1, 1]\nruns: {{a: []}}",
            ["sweep.yaml:2: seeds: ", "[0, 1, 2]", "[1, 1]"],
        ),
        (f"base: {QUICKSTART}\nruns: []", ["sweep.yaml:2: runs: "]),
        (
            f"base: {QUICKSTART}\nruns:\n  a: [optimizer.lr: 1]",
            ["sweep.yaml:3: run a: ", "[optimizer.lr=0.2, duration=5ep]"],
        ),
        (
            f"base: {QUICKSTART}\nruns:\n  a: [optimizer.lrr=1]\n  b b: []\n  c: [seed=1]\n  d: []\n"
            "  e: [optimizer.lr=0.2]\n  f: [duration=5]",
            [
                "sweep.yaml:3: run a: ",
                "did you mean optimizer.lr?",
                "sweep.yaml:4: run b b: ",
                "sweep.yaml:5: run c: seed: ",
                "use seeds",
                "sweep.yaml:7: run e: ",
                "run d; remove one",
                "sweep.yaml:8: run f: duration",
            ],
        ),
        ("base: configs/missing.yaml\nruns: {a: []}", ["configs/missing.yaml: "]),
    ],
)
def test_a_bad_sweep_file_is_refused_before_anything_runs(tmp_path: Path, text: str, messages: list[str]):
    with pytest.raises(UserError) as raised:
        read_text(tmp_path, text)
    for message in messages:
        assert message in str(raised.value)


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["sweep", "configs/sweeps/digits_label_smoothing.yaml", "--dry-run", f"log.dir={tmp_path}"]) == 0
    )
    assert "2 waiting" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert main(["sweep", "missing.yaml"]) == 2
    assert "configs/sweeps/label_smoothing.yaml" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    assert main(["sweep", "configs/sweeps/digits_label_smoothing.yaml", f"log.dir={tmp_path / 'file'}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {tmp_path / 'file'}/") and "Not a directory" in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_a_real_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "lr.yaml"
    path.write_text(
        f"base: {QUICKSTART}\noverrides: [duration=2st, runtime.device=cpu]\n"
        "runs: [optimizer.lr=0.1, optimizer.lr=0.3]\n"
    )
    small = ["data.image_size=8", "augment.cutout=2", "precision.mode=fp32", f"log.dir={tmp_path}"]
    assert main(["sweep", str(path), *small, "--jobs", "2"]) == 0
    assert "lr-0.1" in capsys.readouterr().out
    results = json.loads((tmp_path / "sweeps/lr/results.json").read_text())["runs"]
    assert [run["status"] for run in results] == ["done", "done"]
    assert all(0 <= run["result"]["test_accuracy"] <= 1 for run in results)
