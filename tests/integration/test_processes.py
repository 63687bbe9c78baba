"""Runs two processes on the CPU, by accelerate's launcher, by torchrun or forked, connected by gloo."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pipeline import train
from pipeline.config import load_config
from pipeline.data import load_splits
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from pipeline.explain.explain_model import explain_mistakes, explain_pixels
from pipeline.inference.evaluate_run import evaluate_run
from pipeline.inference.trained_model import Trained, load_trained
from pipeline.models import build_model
from pipeline.run.checkpoint import newest_intact
from tests.integration import two_processes
from tests.integration.ranks import ranks
from tests.patience import PATIENCE_S, wait_until
from tests.python import ROOT, run_python
from tests.tiny import RECIPE, last_weights, only_run, read_metrics

pytestmark = pytest.mark.slow
SCRIPT = Path(two_processes.__file__)


@dataclass
class Started:
    """Results of a run on two processes: exit code, output, and the reports of the ranks."""

    code: int
    out: list[str]
    err: str
    ranks: list[dict[str, Any]]


ACCELERATE = (
    *("pipeline.distributed.launcher", "--quiet", "--config_file", "configs/accelerate/cpu2.yaml"),
    *("--num_processes", "2", "--num_cpu_threads_per_process", "1"),
)


def start(
    folder: Path, *arguments: str, launcher: tuple[str, ...] = ACCELERATE, stop: int = 0, **variables: str
) -> Started:
    """Run `two_processes.py` in a folder, which may hold an earlier run."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "QUICKRES_NUM_PROCESSES": "2",
    }
    keys = (f"log.dir={folder}/runs", "data.eval_batch_size=6", *arguments)
    command = ("-m", *launcher, str(SCRIPT), str(folder), str(stop), str(RECIPE), *keys)
    done = run_python(*command, check=False, timeout=PATIENCE_S, **(settings | variables))
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return Started(done.returncode, done.stdout.splitlines(), done.stderr, reports)


def fork(folder: Path, *arguments: str) -> Started:
    """Do the same as `start` without a launcher, in processes that start in a moment."""
    arguments = (str(RECIPE), f"log.dir={folder}/runs", "data.eval_batch_size=6", *arguments)
    with ranks(folder, 2, two_processes.main, folder, 0, list(arguments)) as run:
        codes = run.wait()
    assert None not in codes, run.errors
    assert not run.text("out-1")
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    return Started(run.exit_code, run.text("out-0").splitlines(), "\n".join(run.errors), reports)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Started]:
    """Return a run from its first step to its last, by accelerate's launcher."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, start(folder, launcher=ACCELERATE)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Started]:
    """A run in which one process got a signal after step 3."""
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, start(folder, stop=3)


def read_records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(only_run(folder / "runs")) if record["kind"] == kind]


def test_it_ends_well_and_only_the_first_process_prints(whole: tuple[Path, Started]):
    folder, run = whole
    assert (run.code, run.err) == (0, "")
    assert [report["code"] for report in run.ranks] == [0, 0]
    first, *epochs, _, _, _, last = run.out
    assert "2 x CPU" in first and "batch 8, 15 steps of which 5 an epoch" in first
    assert len(epochs) == 3 and all(line.startswith("epoch ") for line in epochs)
    assert last == str(only_run(folder / "runs"))


def test_only_the_first_process_writes(whole: tuple[Path, Started]):
    run = only_run(whole[0] / "runs")
    scalars, end_of_run = run.glob("tb/*")  # of one process: their names contain host and process id
    assert scalars.name.split(".")[4:-1] == end_of_run.name.split(".")[4:-1]
    assert [len(read_records(whole[0], kind)) for kind in ("train", "eval")] == [9, 3]
    result = json.loads((run / "result.json").read_text())
    assert (result["world_size"], result["steps"], result["test_seen"]) == (2, 15, 8)


def test_processes_share_the_batches_of_one(whole: tuple[Path, Started]):
    config = load_config(only_run(whole[0] / "runs") / "config.yaml")
    sampler = TrainSampler(40, 8, Shard(), config.seed, (8, 8), config.augment)
    zero, one = (report["steps"] for report in whole[1].ranks)
    for step in range(15):
        assert zero[step]["indices"] + one[step]["indices"] == sampler.plan(*divmod(step, 5)).indices.tolist()


def test_processes_have_the_same_weights_and_not_the_same_losses(whole: tuple[Path, Started]):
    zero, one = (report["steps"] for report in whole[1].ranks)
    assert [step["weights"] for step in zero] == [step["weights"] for step in one]
    assert all(a["loss"] != b["loss"] for a, b in zip(zero, one, strict=True))


def test_metrics_are_of_all_processes(whole: tuple[Path, Started]):
    previous = 0
    for record in read_records(whole[0], "train"):
        window = [step for report in whole[1].ranks for step in report["steps"][previous : record["step"]]]
        assert record["loss"] == pytest.approx(sum(step["loss"] for step in window) / len(window))
        assert record["accuracy"] == sum(step["correct"] for step in window) / (4 * len(window))
        previous = record["step"]


@pytest.mark.usefixtures("process_state")
def test_one_process_reproduces_the_accuracy_of_two(whole: tuple[Path, Started]):
    """Counts are exact despite padding (8 samples in batches of 6), and norm statistics are averaged."""
    run = only_run(whole[0] / "runs")
    result = json.loads((run / "result.json").read_text())
    again = evaluate_run(run)
    assert (again.correct, again.seen) == (result["test_correct"], 8)
    assert again.loss == pytest.approx(result["test_loss"], rel=1e-5)


def test_results_and_errors_of_one_process_reach_the_others(whole: tuple[Path, Started]):
    zero, one = whole[1].ranks
    assert zero["on_main"] == one["on_main"] == "returned made by 0"
    assert zero["on_main_user_error"] == one["on_main_user_error"] == "UserError: bad key"
    assert (zero["on_main_bug"], one["on_main_bug"]) == (
        "KeyError: 'a bug'",
        "TrainingError: process 0: KeyError: 'a bug'",
    )
    assert (zero["main_first"], one["main_first"]) == ("returned made by 0", "returned made by 1")
    assert zero["main_first_on_0"] == one["main_first_on_0"] == "UserError: bad file"
    assert one["ran_after_error"] == []
    assert zero["main_first_on_1"] == one["main_first_on_1"] == "UserError: only here"
    assert (zero["main_first_bug_on_1"], one["main_first_bug_on_1"]) == (
        "TrainingError: process 1: OSError: no disk",
        "OSError: no disk",
    )
    assert zero["sum"] == one["sum"] == [2, 1]
    assert zero["norm"] == one["norm"] == [0.5, 2.5]


@pytest.mark.usefixtures("process_state")
def test_a_compiled_run_in_bf16_explains_as_its_eager_twin(tmp_path: Path):
    """The maps depend on the weights alone.

    A run on two processes, compiled, in bf16, has the maps of an eager float32 network with the same weights.
    """
    started = fork(
        tmp_path, "precision.mode=bf16", "compile.mode=default", "compile.backend=aot_eager", "duration=2st"
    )
    assert (started.code, started.err) == (0, "")
    run = only_run(tmp_path / "runs")
    assert "2 x CPU" in started.out[0] and "bf16, compile default" in started.out[0]
    config = load_config(run / "config.yaml", ["precision.mode=fp32", "compile.mode=none"])
    twin = build_model(config.model, num_classes=4)
    weights = last_weights(run)
    assert weights.keys() == twin.state_dict().keys()  # no `module.`, no `_orig_mod.`
    assert all(weight.dtype == twin.state_dict()[key].dtype for key, weight in weights.items())
    twin.load_state_dict(weights)
    result = explain_mistakes(load_trained(run), count=8)
    expected = explain_pixels(Trained.of(config, twin, load_splits(config.data, config.seed)), result.images)
    assert result.found.maps.any()
    np.testing.assert_array_equal(result.found.maps, expected.found.maps)
    np.testing.assert_array_equal(result.found.probabilities, expected.found.probabilities)


# --- interrupted and continued --------------------------------------------------------------------------


def test_a_signal_to_one_process_stops_all_two_steps_later(interrupted: tuple[Path, Started]):
    folder, run = interrupted
    assert run.code == 75
    ends = [(report["code"], len(report["steps"])) for report in run.ranks]
    assert ends == [(75, 6), (75, 6)]  # step 6 is not logged
    (message,) = run.err.splitlines()
    assert re.fullmatch("stopped: by a signal to another process, saved at step 6; .*resume=auto", message)
    assert not (only_run(folder / "runs") / "result.json").exists()


def assert_same_training(actual: Path, expected: Path) -> None:
    weights, wanted = (last_weights(only_run(folder / "runs")) for folder in (actual, expected))
    for key, value in weights.items():
        if "running" in key:  # the statistics were averaged at other steps: the same sums in another order
            torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, wanted[key]), key
    for kind in ("train", "eval"):
        for record, other in zip(read_records(actual, kind), read_records(expected, kind), strict=True):
            assert {**record, "loss": 0} == {**other, "loss": 0}
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_it_is_continued_on_two_processes(
    interrupted: tuple[Path, Started], whole: tuple[Path, Started], tmp_path: Path
):
    folder = tmp_path / "continued"
    shutil.copytree(interrupted[0], folder, symlinks=True)
    run = fork(folder, "resume=auto")
    assert run.code == 0, run.err
    assert [len(report["steps"]) for report in run.ranks] == [9, 9]
    assert_same_training(folder, whole[0])


@pytest.mark.usefixtures("process_state")
def test_it_is_continued_on_one_process(
    interrupted: tuple[Path, Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "continued"
    shutil.copytree(interrupted[0], folder, symlinks=True)
    run = only_run(folder / "runs")
    assert train.main([str(RECIPE), f"log.dir={folder}/runs", "data.eval_batch_size=6", "resume=auto"]) == 0
    assert f"continuing {run} from step 6" in capsys.readouterr().out
    steps = [record["step"] for record in read_records(folder, "train")]
    assert steps == [2, 4, 5, 7, 9, 10, 12, 14, 15]


# --- what goes wrong ------------------------------------------------------------------------------------


def test_a_bug_on_one_process_ends_all(tmp_path: Path):
    run = start(tmp_path, stop=-6)
    assert run.code == 1
    first, *_, last = run.err.splitlines()
    assert first == "[rank1]: Traceback (most recent call last):", run.err
    assert last == "[rank1]: RuntimeError: a bug on one process", run.err
    assert newest_intact(only_run(tmp_path / "runs") / "checkpoints")[0] is not None


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (signal.SIGKILL, "error: process 1 has not responded .*killed.*resume=auto"),
        (signal.SIGSTOP, "error: process 1 hangs: .*runtime.hang_timeout_s.*resume=auto"),
    ],
)
def test_a_lost_process_is_named_once_and_soon(number: signal.Signals, message: str, tmp_path: Path):
    """The launcher adds nothing of its own, and does not wait for a suspended process."""
    hang_s = 8
    durations = ("duration=100000ep", "log.eval_every=100000ep", "log.log_every=100000ep")
    keys = ("log.checkpoint_every=20st", f"runtime.hang_timeout_s={hang_s}", "data.eval_batch_size=6")
    arguments = [str(RECIPE), f"log.dir={tmp_path}", "log.tensorboard=false", *durations, *keys]
    command = [sys.executable, "-m", *ACCELERATE, "-m", "pipeline.train", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            wait_until(lambda: any(tmp_path.glob("*/checkpoints/step-*")), "the first checkpoint")
            time.sleep(2.5)  # two heartbeats, from which the process is known to train
            children = psutil.Process(launcher.pid).children()
            (lost,) = (child for child in children if child.environ()["RANK"] == "1")
            lost.send_signal(number)
            _, errors = launcher.communicate(timeout=2 * hang_s)
        finally:
            for child in psutil.Process(launcher.pid).children() if launcher.poll() is None else []:
                child.kill()
            launcher.kill()
    assert launcher.returncode == 1
    assert re.fullmatch(message, errors.strip()), errors
