"""Tests the course of `bench scaling` with scripted groups: its prediction, its verdicts, and its end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import session
from benchmarks.measure.options import QUICK
from benchmarks.publish.records import Record, append, read
from benchmarks.scaling import groups, scaling, scaling_worker
from benchmarks.scaling.scaling_model import Calibration
from benchmarks.scaling.scaling_worker import CALIBRATIONS, Measurement
from benchmarks.scaling.variants import APART, DDP, ONE, STRONG, WEAK
from pipeline.errors import TrainingError
from pipeline.models import build_model
from pipeline.models.layers import NormAct
from tests.integration.ranks import ranks
from tests.tiny import RECIPE, tiny_config

pytestmark = pytest.mark.usefixtures("process_state")
KEYS = [*QUICK, "precision.mode=fp32", "runtime.device=cpu"]
STEP_S = {1: 10e-3, 2: 10.5e-3, 4: 11e-3, 8: 12e-3}
CALIBRATION = Calibration(
    rank_step_s=((10e-3,) * 4,) * 2,
    averaging_s=0.1e-3,
    messages=(2_000_000,),
    reduce_s={256: 0.0, 2_000_000: 0.4e-3},
)  # a step on two takes as long as its parts


def group(size: int) -> list[Measurement]:
    """Return the measurements of a group of this size; DDP takes 2 % longer."""

    def of(variant: str, batch: int, seconds: float) -> Measurement:
        return Measurement(
            variant=variant,
            loader="dali",
            batch_size=batch,
            step_s=(seconds,) * 2,
            data_wait_fraction=0.0,
            compile_s=1.0,
            peak_memory_bytes=2**30,
        )

    if size == 1:
        return [of(ONE, 8, STEP_S[1])]
    step_s = STEP_S[size]
    return [
        of(WEAK, 8 * size, step_s),
        of(DDP, 8 * size, 1.02 * step_s),
        of(STRONG, 8, step_s / 2),
        of(APART, 8 * size, 10e-3),
    ]


Act = Callable[[], Any]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that scripts the groups: ACT is called in place of the group of this size."""

    def script(at: int = 0, act: Act = lambda: None) -> list[str]:
        done: list[str] = []

        def measure(_: Any, size: int, threads: int) -> list[Measurement]:
            if size == at:
                act()
            done.append(str(size))
            print(f"measured {size}")
            return group(size)

        def calibrate(*_: Any) -> dict[str, Calibration]:
            done.append("calibration")
            return {"dali": CALIBRATION}

        monkeypatch.setattr(groups, "measure", measure)
        monkeypatch.setattr(groups, "calibrate", calibrate)
        monkeypatch.setattr(session, "append", partial(append, results=tmp_path))
        return done

    return script


def run(*arguments: str) -> int:
    sizes = [] if "--processes" in arguments else ["--processes", "1,2,4"]
    asked = [*sizes, "--rounds", "2", "--record", *arguments]
    return main(["scaling", "configs/quickstart.yaml", *KEYS, *asked])


def by_size(records: list[Record], variant: str) -> dict[int, Record]:
    return {record.world_size: record for record in records if record.variant == variant}


def test_more_processes_are_predicted_before_they_are_measured(
    tmp_path: Path, scripted: Any, capsys: pytest.CaptureFixture[str]
):
    done = scripted()
    assert run("--processes", "1,2,4,8", "--target", "90") == 1
    assert done == ["1", "2", "calibration", "4", "8", "1", "2", "4", "8"]
    out = capsys.readouterr().out
    before, _, after = out.partition("measured 4")
    # on 4: 10 + 0.1 + 1.5 0.4 ms
    assert "predicted for weak scaling on 4 processes: 2,991 images/sec (2,991–2,991), 93.5 %" in before
    assert "processes wait for: not determined" in before, "no step differs from another one"
    assert "predicted for weak scaling on 8 processes" in before
    assert "not within 2 %" in after and "measured 1.000 ms" in after
    assert "weak scaling on 4 processes, target 90.0 %: 90.9 %, reached" in after
    assert "weak scaling on 8 processes, target 90.0 %: 83.3 %, missed" in after
    assert "ours over DDP on 2 processes: 1.020 ×; our averaging is worth its code" in after
    assert "which this is not" in after, "8 images a process on the CPU decide nothing"
    weak = by_size(read(tmp_path), WEAK)
    assert weak[2].predicted is None and weak[4].predicted is not None
    assert weak[4].predicted.images_per_sec == pytest.approx(32 / 10.7e-3)
    assert all(record.planned is None for record in weak.values())


def test_without_a_calibration_more_processes_are_measured_all_the_same(
    tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = scripted()
    monkeypatch.setattr(groups, "calibrate", lambda *_: fail())
    assert run() == 0
    assert done == ["1", "2", "4"] * 2
    assert capsys.readouterr().out.count("warning: nothing is predicted: measuring 4 processes failed") == 1
    assert all(record.predicted is None for record in read(tmp_path))


def test_two_processes_alone_need_no_prediction(scripted: Any, capsys: pytest.CaptureFixture[str]):
    done = scripted()
    assert run("--processes", "2", "--target", "95") == 0
    assert done == ["1", "2"] * 2
    assert "predicted" not in capsys.readouterr().out


def test_processes_without_a_gpu_are_predicted_all_the_same(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    done = scripted()
    monkeypatch.setattr(scaling, "world_sizes", lambda *_: ([1, 2], [4, 8]))
    assert run("--processes", "1,2,4,8") == 0
    assert done == ["1", "2", "calibration", "1", "2"]
    out = capsys.readouterr().out
    assert "not measured: 4, 8 processes" in out
    assert "predicted for weak scaling on 4 processes: 2,991 images/sec (2,991–2,991), 93.5 %" in out
    assert "predicted for weak scaling on 8 processes" in out and "not within" not in out


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise TrainingError("measuring 4 processes failed with exit code 1:\nout of memory")


@pytest.mark.parametrize(("act", "code"), [(interrupt, 130), (fail, 1)])
def test_the_groups_before_an_end_are_kept(
    act: Act, code: int, tmp_path: Path, scripted: Any, capsys: pytest.CaptureFixture[str]
):
    scripted(at=4, act=act)
    assert run() == code
    printed = capsys.readouterr()
    assert ("stopped in round 1 of 2" in printed.out) == (code == 130)
    assert ("out of memory" in printed.err) == (code == 1)
    records = read(tmp_path)
    assert {record.world_size for record in records} == {1, 2} and len(records) == 5
    assert {record.planned for record in records} == {2}
    baseline = by_size(records, WEAK)[2].baseline
    assert baseline is not None and baseline.ratio.n == 1


def test_without_a_group_there_is_nothing_to_keep(
    tmp_path: Path, scripted: Any, capsys: pytest.CaptureFixture[str]
):
    scripted(at=1, act=interrupt)
    assert run() == 130
    assert read(tmp_path) == [] and "stopped in round 1" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["0.95", "101"])
def test_a_target_that_is_no_efficiency(target: str, scripted: Any, capsys: pytest.CaptureFixture[str]):
    done = scripted()
    assert run("--target", target) == 2
    assert f"--target: {target} is no efficiency" in capsys.readouterr().err and not done


def calibrate(rank: int, output: Path) -> int:
    """Calibrate in this process, one of two."""
    asked = ["--calibrate", "--loaders", "dali", "--output", str(output), "--windows", "1", "--steps", "4"]
    keys = ["model.sync_batchnorm=true", "data.eval_batch_size=6"]
    return scaling_worker.main([*asked, str(RECIPE), *keys])


@pytest.mark.slow
def test_two_processes_calibrate(tmp_path: Path):
    with ranks(tmp_path, 2, calibrate, tmp_path / "output.json") as started:
        assert started.wait() == [0, 0], started.errors
    found = CALIBRATIONS.validate_json((tmp_path / "output.json").read_bytes())["dali"]
    assert [len(steps) for steps in found.rank_step_s] == [4, 4]
    assert all(seconds > 0 for steps in found.rank_step_s for seconds in steps)
    assert min(found.reduce_s.values()) > 0
    num_bytes = 4 * sum(p.numel() for p in build_model(tiny_config().model, 4).parameters())
    assert num_bytes <= found.messages[0] < 1.2 * num_bytes  # with padding
    moments = found.messages[1:]  # of each norm, forward and backward
    norms = [m for m in build_model(tiny_config().model, 4).modules() if isinstance(m, NormAct)]
    assert sorted(moments) == sorted([2 * 8 * norm.num_features for norm in norms] * 2)
    assert set(found.reduce_s) == {256, *found.messages}
