"""Tests `bench time-to-accuracy`: its verdict and exit code, its record, its options, and Ctrl-C."""

import os
import re
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import cold_and_warm, machine, session
from benchmarks.measure.whole_run import WholeRunRig
from benchmarks.peers import programs
from benchmarks.publish.about_folder import ABOUT, AboutFolder
from benchmarks.publish.records import newest, read
from benchmarks.publish.tables import MAKERS
from benchmarks.publish.whole_runs import KernelTable, KernelTime, TimedRun
from benchmarks.suites import time_to_accuracy
from pipeline.config import load_config
from tests.class_folders import make_class_folders
from tests.tiny import RECIPE
from tests.unit.benchmarks.results import make_whole_runs, record

pytestmark = pytest.mark.usefixtures("process_state")
NAME = "time-to-accuracy"


def scripted(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], stops: bool = False) -> None:
    """Let runs end with these accuracies at once; then, with STOPS, Ctrl-C comes."""
    left = list(accuracies)

    def train(_: WholeRunRig, config: Any) -> TimedRun:
        if stops and not left:
            raise KeyboardInterrupt
        accuracy = left.pop(0)
        return TimedRun(seed=config.seed, seconds=0.5, accuracies={"one view": 0.1, "with flip": accuracy})

    monkeypatch.setattr(WholeRunRig, "train", train)


@pytest.mark.parametrize(
    ("accuracies", "target", "code", "verdict"),
    [
        ([0.942, 0.943, 0.9435, 0.9425], "94", 0, "reached"),
        ([0.942, 0.943, 0.9435, 0.9425], "94.2", 1, "not shown"),
        ([0.939, 0.938, 0.94, 0.9395], "94", 1, "not shown"),
        ([0.95, 0.95], "94", 0, "reached"),
    ],
)
def test_the_exit_code_is_that_of_the_test(
    accuracies: list[float],
    target: str,
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    scripted(monkeypatch, accuracies)
    assert main([NAME, str(RECIPE), "--target", target, "--runs", str(len(accuracies))]) == code
    out = capsys.readouterr().out
    assert f"mean accuracy (with flip) of at least {target} %: {verdict}" in out
    assert "accuracy, one view: 10.00" in out and "minimum 0.500 s, σ 0.000 s" in out


def test_real_runs_are_shown_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path))
    arguments = [NAME, str(RECIPE), "--runs", "3", "--record", "evaluation.flip_tta=true", "ema.decay=0.5"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    lines = re.findall(r"^run (\d) of 3, seed (\d): .*% one view, .*% ema with flip, [\d.]+ s", out, re.M)
    assert lines == [("1", "3"), ("2", "4"), ("3", "5")]
    assert "left" in out and "from the command to the first trained network" in out and "┃" in out
    (kept,) = read(tmp_path)
    runs = kept.whole_runs
    assert kept.benchmark == "time_to_accuracy" and kept.variant == "tiny" and runs is not None
    assert (
        [run.seed for run in runs.runs] == [3, 4, 5] and runs.is_complete and runs.figure == "ema with flip"
    )
    assert set(runs.runs[0].accuracies) == {"one view", "with flip", "ema", "ema with flip"}
    floor = runs.floor
    assert floor is not None and 0 < floor.seconds < sum(run.seconds for run in runs.runs)
    assert f"least work of a run: {floor.flops / 1e12:.4g} TFLOP" in out and "% of the mean time" in out
    assert (runs.wait_s or 0.0) > runs.runs[0].seconds > 0 and runs.gpu_before is None
    assert load_config(overrides=[]).model_validate(kept.config).seed == 3
    assert runs.source_hash == machine.hash_of_sources(RECIPE) != machine.hash_of_sources(Path(__file__))


def test_the_kernels_are_shown_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path))
    scripted(monkeypatch, [0.95, 0.95])
    rows = (KernelTime(name="wgrad<64>", microseconds=750.0, fraction=0.75, launches=12.0),)
    tables = (KernelTable(work="a step, 10 from step 7 on", microseconds=1080.0, rows=rows),)
    monkeypatch.setattr(WholeRunRig, "profile", lambda _: tables)
    monkeypatch.setattr(time_to_accuracy, "_check_kernels", lambda _: None)
    assert main([NAME, str(RECIPE), "--runs", "2", "--kernels", "--record"]) == 0
    out = capsys.readouterr().out
    assert "kernels of a step, 10 from step 7 on, which takes 1,080 µs:" in out
    assert "| `wgrad<64>` | 750.0 | 75.0% | 12.0 |" in out
    (kept,) = read(tmp_path)
    assert kept.whole_runs is not None and kept.whole_runs.kernels == tables


def append_to(results: Path, records: Any) -> list[Path]:
    from benchmarks.publish.records import append

    return append(records, results)


@pytest.mark.parametrize("done", [2, 0])
def test_ctrl_c_keeps_the_runs_that_are_done(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path))
    scripted(monkeypatch, [0.95] * done, stops=True)
    assert main([NAME, str(RECIPE), "--target", "94", "--runs", "5", "--record"]) == 130
    out = capsys.readouterr().out
    assert ("stopped after 2 of 5 runs" if done else "stopped before the end of the first run") in out
    assert ("2 of 5" in out and "┃" in out) == bool(done)
    assert [len(kept.whole_runs.runs) for kept in read(tmp_path) if kept.whole_runs] == [2] * bool(done)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--runs", "0"], ["--runs: ", "1 or more, got 0"]),
        (["--runs", "1", "--target", "94"], ["--runs: ", "2 or more"]),
        (["--peer", f"a={__file__}", "--peer-runs", "1"], ["--peer-runs: ", "2 or more"]),
        (["--target", "0.94"], ["--target: 0.94", "such as 94"]),
        (["--target", "100"], ["--target: 100"]),
        (["--steps", "5"], ["--steps: ", "--runs"]),
        (["--windows", "5"], ["--windows: ", "--runs"]),
        (["data.loader=fused"], ["data.loader: "]),
        (["--kernels"], ["--kernels: ", "leave it out"]),
        (["--blocks", "2"], ["--blocks: there is no peer"]),
        (["--peer", f"a={__file__}", "--peer", f"a={__file__}"], ["--peer: a=", "another peer"]),
        (["--peer", f"tiny={__file__}"], ["--peer: tiny=", "our own recipe"]),
        (["--peer", f"../a={__file__}"], ["--peer: ../a=", "letters"]),
        (["--data", "CIFAR-10"], ["--data: data.dataset=synthetic", "leave it out"]),
        (["optimizer.lrr=1"], ["did you mean optimizer.lr?"]),
    ],
)
def test_bad_input_is_told_before_anything_is_built(
    arguments: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(WholeRunRig, "train", lambda *_: pytest.fail("this takes time"))
    assert main([NAME, str(RECIPE), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert [part for part in parts if part not in error] == []


def test_random_images_do_not_replace_a_missing_data_set(capsys: pytest.CaptureFixture[str]):
    missing = ["data.root=missing", "runtime.device=cpu", "precision.mode=bf16"]
    assert main([NAME, "configs/imagenet_resnet50.yaml", *missing]) == 2
    printed = capsys.readouterr()
    assert "missing" in printed.err and "random images" not in printed.out


def test_a_stopped_benchmark_does_not_replace_a_complete_one():
    records = [
        record(
            "time_to_accuracy", "fast", images_per_sec=None, step_ms=None, whole_runs=make_whole_runs(planned)
        )
        for planned in (2, 5, 2)
    ]
    assert newest(records) == [records[2]] and newest(records[:2]) == [records[0]]
    table = MAKERS["time_to_accuracy"](records[1:])
    assert [row[table.header.index("runs")] for row in table.rows] == ["2 of 5", "2"]
    assert "90.50 ± 0.71 % (2)" in table.rows[0] and "1.500 ± 0.707" in table.rows[0]


def test_the_wait_counts_from_the_start_of_the_process():
    assert 0 < machine.seconds_since_start() < 24 * 3600
    first = machine.seconds_since_start()
    time.sleep(0.05)
    assert 0.04 < machine.seconds_since_start() - first < 5


def test_new_kernels_tell_that_the_caches_were_cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "a").mkdir()
    for name, age in (("old.cubin", 100), ("new.cubin", 0), ("new.json", 0)):
        (tmp_path / "a" / name).touch()
        os.utime(tmp_path / "a" / name, (1e9 - age, 1e9 - age))
    assert machine.count_compiled(1e9) == 1


PEER = """
import sys, time, torch
assert torch.load("cifar10/train.pt")["images"].dtype is torch.uint8
assert len(torch.load("cifar10/test.pt")["labels"]) == len(torch.load("cifar10/test.pt")["images"])
print("|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")
for run in range(int(sys.argv[1]) if len(sys.argv) > 1 else 1000):
    print("|          |      1  |     0.5000  |   0.5100  |               |        0.1000  |")
    accuracy = 0.1 if run == 0 else 0.93
    print(f"|          |   eval  |     0.5000  |   {accuracy:.4f}  |   {accuracy + 0.01:.4f}  |  {run}.5  |")
    print("mean so far", end="\\\\r", flush=True)
    time.sleep(0.05)
"""


def test_peers_train_in_turn_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first run after each start or stop is not timed."""
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.942, 0.943, 0.9435, 0.9425])
    program, cache = tmp_path / "other.py", tmp_path / "cache" / "kernel.cubin"
    program.write_text(
        f"import pathlib\ncache = pathlib.Path({str(cache)!r})\ncache.parent.mkdir()\ncache.touch()\n{PEER}"
    )
    monkeypatch.setattr(programs, "default_caches", lambda: (str(cache.parent),))
    options = [
        "--target",
        "94",
        "--runs",
        "4",
        "--peer",
        f"other={program}",
        "--peer-runs",
        "3",
        "--blocks",
        "2",
    ]
    assert main([NAME, str(RECIPE), *options, "--record"]) == 0
    out = capsys.readouterr().out
    order = re.findall(r"^(run \d|other: 93)", out, re.M)
    assert order[:6] == ["run 1", "run 2", "other: 93", "run 3", "run 4", "other: 93"]
    assert "other: 94.00 ± 0.00 % (3)" in out and "of its time" in out
    ours, theirs = read(tmp_path / "results")
    assert (ours.variant, theirs.variant) == ("tiny", "other")
    runs = theirs.whole_runs
    assert runs is not None and runs.compiled == 1 and (runs.wait_s or 0.0) > 0
    seconds = [run.seconds for run in runs.runs]
    assert seconds[0] == 1.5 and seconds[1] >= 3.5 and seconds[2] == seconds[1] + 1
    assert runs.runs[0].accuracies == {"one view": 0.93, "with their views": 0.94}


def test_peers_of_a_stopped_benchmark_are_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.942, 0.943], stops=True)
    program = tmp_path / "other.py"
    program.write_text(PEER)
    options = ["--runs", "4", "--peer", f"other={program}", "--peer-runs", "5", "--blocks", "2"]
    assert main([NAME, str(RECIPE), *options, "--record"]) == 130
    assert "2 of 5" in capsys.readouterr().out
    runs = {kept.variant: kept.whole_runs for kept in read(tmp_path / "results")}
    assert {name: (len(of.runs), of.planned, of.is_complete) for name, of in runs.items() if of} == {
        "tiny": (2, 4, False),
        "other": (2, 5, False),
    }


@pytest.mark.parametrize("peer", ["other", "other=missing.py", "=other.py"])
def test_a_peer_that_is_no_program_is_told(peer: str, capsys: pytest.CaptureFixture[str]):
    assert main([NAME, str(RECIPE), "--runs", "4", "--peer", peer]) == 2
    assert f"--peer: {peer} is not NAME=FILE" in capsys.readouterr().err


HEADER = "|  epoch  |  val_acc  |  tta_val_acc  |  time_seconds  |"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["no GPU"], "ended with code 3; it printed: no GPU"),
        ([HEADER, *["| eval | 0.93 | 0.94 | 1.5 |"] * 2, "no memory"], "it printed: no memory"),
        ([HEADER, "| eval | 0.93 | nothing | 1.5 |"], "numbers: | eval | 0.93 | nothing | 1.5 |"),
        ([HEADER.replace("time_s", "s"), "| eval | 0.93 | 0.94 | 1.5 |"], "time_seconds"),
        ([HEADER.replace("tta_val_acc", "tta"), "| eval | 0.93 | 0.94 | 1.5 |"], "tta_val_acc"),
    ],
)
def test_a_peer_that_fails_is_told_and_our_runs_are_kept(
    lines: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.94] * 4)
    program = tmp_path / "other.py"
    program.write_text(f"for line in {lines!r}: print(line)\nraise SystemExit(3)\n")
    options = ["--runs", "4", "--blocks", "2", "--peer", f"other={program}", "--record"]
    assert main([NAME, str(RECIPE), *options]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "94.00 ± 0.00 % (2)" in printed.out
    (ours,) = (kept.whole_runs for kept in read(tmp_path / "results"))
    assert ours is not None and (len(ours.runs), ours.planned) == (2, 4)


# --- what a user waits --------------------------------------------------------------------------------------


def test_the_waits_are_those_of_two_processes_with_one_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The first finds empty caches, the second those of the first. They get the user's keys, and one run."""
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.95, 0.95])
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        f"assert sys.argv[1:] == {[NAME, str(RECIPE), 'seed=9', '--runs', '1']!r}, sys.argv\n"
        "assert not any(name.endswith('_CACHE_DIR') for name in os.environ)\n"
        "compiled = Path(os.environ['XDG_CACHE_HOME'], 'kernel')\n"
        "seconds = 7.5 if compiled.exists() else 43.2\n"
        "compiled.touch()\n"
        "print(f'from the command to the first trained network: {seconds} s; the compile caches were')\n"
    )
    monkeypatch.setattr(cold_and_warm, "_program", lambda: [sys.executable, str(program)])
    assert main([NAME, str(RECIPE), "seed=9", "--runs", "2", "--waits", "--record"]) == 0
    out = capsys.readouterr().out
    assert "the same in a new process: 43.2 s with cold compile caches, 7.5 s with warm ones" in out
    (kept,) = read(tmp_path / "results")
    assert kept.whole_runs is not None
    assert (kept.whole_runs.cold_wait_s, kept.whole_runs.warm_wait_s) == (43.2, 7.5)
    (row,) = MAKERS["time_to_accuracy"]([kept]).rows
    assert "43.2 cold, 7.5 warm" in row


def test_a_start_that_fails_is_told_and_the_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.95, 0.95])
    fails = "print('no memory'); raise SystemExit(3)"
    monkeypatch.setattr(cold_and_warm, "_program", lambda: [sys.executable, "-c", fails])
    assert main([NAME, str(RECIPE), "--runs", "2", "--waits", "--record"]) == 1
    error = capsys.readouterr().err
    assert "--waits: a start failed with exit code 3:" in error and "no memory" in error
    (kept,) = read(tmp_path / "results")
    assert kept.whole_runs is not None and kept.whole_runs.is_complete
    assert kept.whole_runs.cold_wait_s is None


# --- the name of the images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["--data", ABOUT, None])
def test_a_record_names_the_images_of_its_accuracy(
    of: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(session, "append", partial(append_to, tmp_path / "results"))
    scripted(monkeypatch, [0.95, 0.95])
    root = make_class_folders(tmp_path / "images")
    if of == ABOUT:
        AboutFolder(name="CIFAR-10").write(root / ABOUT)
    keys = ["data.dataset=folder", f"data.root={root}", "data.image_size=8", "data.batch_size=4"]
    options = ["--runs", "2", *(["--data", "CIFAR-10"] if of == "--data" else [])]
    assert main([NAME, str(RECIPE), *keys, *options, "--record"]) == (0 if of else 2)
    if of is None:
        assert "--record: data.dataset=folder does not name the images" in capsys.readouterr().err
    assert [kept.data for kept in read(tmp_path / "results")] == ["CIFAR-10"] * bool(of)
