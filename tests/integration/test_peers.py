"""Tests `bench peers` with small programs that print the logs of torchvision's and timm's scripts."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import session
from benchmarks.peers import quickres_train
from benchmarks.peers.folder_program import PYTHON
from benchmarks.peers.quickres_train import QuickresTrain
from benchmarks.publish.peer_runs import PeerRuns
from benchmarks.publish.records import Record, append, read
from benchmarks.suites import peers
from tests.class_folders import pixels, save
from tests.unit.benchmarks.results import make_result

pytestmark = pytest.mark.usefixtures("process_state")
RECIPE = "tests/tiny.yaml"

# Each step lasts SECONDS, and each epoch ends with an accuracy of 10 % more than the one before, up to TOP.
COMMON = """
import sys, time
words = dict(zip(sys.argv, sys.argv[1:]))
def say(line):
    print(line, flush=True)
    time.sleep(SECONDS)
"""
OF_TORCHVISION = (
    COMMON
    + """
for epoch in range(int(words["--epochs"])):
    for step in range(4):
        say(f"Epoch: [{epoch}]  [{step}/4]  eta: 0:00:00  lr: 0.1  time: 0.0100  data: 0.0")
    print(f"Epoch: [{epoch}] Total time: 0:00:00")
    say(f"Test:  Acc@1 {TOP - 10.0 * max(1 - epoch, 0):.3f} Acc@5 99.000")
"""
)
OF_TIMM = (
    COMMON
    + """
print("Model resnet18 created, param count:11181642")
for epoch in range(int(words["--epochs"]) + int(words["--warmup-epochs"])):
    for step in range(4):
        say(f"Train: {epoch} [   {step}/4 ( 25%)]  Loss: 1 (1)  Time: 0.010s,  9.00/s  (0.010s, 9.00/s)")
    top1 = TOP - 10.0 * max(1 - epoch, 0)
    say(f"Test: [   1/1]  Time: 0.1 (0.1)  Acc@1:  10.000 ( {top1:.3f})  Acc@5: 99 (99)")
"""
)
# ours: the output of a run, and its files
OF_OURS = """
import json, pathlib, sys, time
keys = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
run = pathlib.Path(keys["log.dir"], "tiny-1")
run.mkdir()
records = []
for epoch in range(1, int(keys["duration"][:-2]) + 1):
    time.sleep(SECONDS)
    print(f"epoch {epoch}/2  train loss 1  test loss 1.0 acc ? (TOP/100)", flush=True)
    speed = dict(images_per_sec=RATE, steps_per_sec=RATE / 10)
    records.append(dict(kind="train", step=4 * epoch, epoch=epoch, lr=0.1, **speed))
    records.append(dict(kind="eval", split="test", step=4 * epoch))
(run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\\n" for record in records))
(run / "result.json").write_text(RESULT)
"""


# the values for these names in the programs
VALUES = {
    "SECONDS": "0.02",
    "RATE": "1e5",
    "RESULT": repr(make_result(num_parameters=11_181_642).model_dump_json()),
}


@dataclass
class Comparison:
    """A folder of images, programs beside it, and the records and the output of commands."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    images: str = "photos"

    def write(self, name: str, code: str, top: float) -> Path:
        """Write a program that ends with this accuracy; return its folder."""
        for key, value in {**VALUES, "TOP": str(top)}.items():
            code = re.sub(rf"\b{key}\b", lambda _, value=value: value, code)
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "train.py").write_text(code)
        return self.folder / name

    def peer(self, name: str, code: str, top: float = 95) -> list[str]:
        return ["--peer", f"{name}={self.write(name, code, top)}"]

    def replace_ours(self) -> None:
        """Let a program stand in for our runs: 95 %, and 100,000 images/sec in each epoch."""
        script = str(self.write("ours", OF_OURS, 95) / "train.py")
        self.monkeypatch.setattr(
            quickres_train, "command_line", lambda _, keys: [PYTHON, "-S", script, *keys]
        )

    def replace_step(self) -> None:
        """Let the step alone take no time: 200,000 images/sec."""
        step = SimpleNamespace(result=SimpleNamespace(images_per_sec=SimpleNamespace(median=2e5)))
        self.monkeypatch.setattr(peers, "start", lambda *_: step)

    def run(self, *more: str) -> int:
        root = f"data.root={self.folder / self.images}"
        keys = ["data.dataset=folder", root, "model.name=resnet18", "augment.cutout=0"]
        return main(["peers", RECIPE, *keys, "--epochs", "3", *more])

    @property
    def records(self) -> dict[str, Record]:
        return {record.variant: record for record in read(self.folder / "results")}

    def runs_of(self, name: str) -> PeerRuns:
        runs = self.records[name].peer_runs
        assert runs is not None
        return runs

    def printed(self) -> tuple[str, str]:
        return self.capsys.readouterr()


@pytest.fixture
def comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Comparison:
    for part, count in (("train", 8), ("val", 2)):
        for number in range(5 * count):
            save(tmp_path / "photos" / part / f"class{number % 5}" / f"{number}.png", pixels(number))
    monkeypatch.setattr(session, "append", partial(append, results=tmp_path / "results"))
    return Comparison(tmp_path, monkeypatch, capsys)


@pytest.fixture
def quick(comparison: Comparison) -> Comparison:
    comparison.replace_ours()
    comparison.replace_step()
    return comparison


def test_all_programs_are_compared_and_recorded(quick: Comparison):
    both = [*quick.peer("torchvision", OF_TORCHVISION, 90), *quick.peer("timm", OF_TIMM)]
    flags = ["--peer-flags", "timm=--clip-grad 1", "--seeds", "2", "--workers", "3", "--record", "seed=5"]
    assert quick.run(*both, *flags, "--at-least", "2.5") == 0
    out, _ = quick.printed()
    assert re.findall(r"^(\w+), run (\d) of 2: ([\d.]+%)", out, re.M) == [
        (name, number, accuracy)
        for number in "12"
        for name, accuracy in (("quickres", "95.00%"), ("torchvision", "90.00%"), ("timm", "95.00%"))
    ]
    assert (
        "left" in out
        and "┃" in out
        and "torchvision differs: another network: 11,179,077 parameters, not 11,181,642" in out
    )
    assert re.search(r"quickres beside timm: .* × its images/sec; .* over whole epochs; accuracy \+0.00", out)
    assert [*quick.records] == ["quickres", "torchvision", "timm"]
    ours = quick.records["quickres"]
    assert ours.rate == pytest.approx(1e5) and quick.runs_of("quickres").step_share == pytest.approx(0.5)
    timm, runs = quick.records["timm"], quick.runs_of("timm")
    assert timm.accuracy == 0.95 and timm.accuracy_n == 2 and timm.parameters == 11_181_642
    assert timm.data == "photos" and timm.epochs == 3 and timm.seeds == (5, 6) and timm.loader == "timm"
    assert timm.baseline is not None and timm.baseline.ratio.median < 0.02
    assert runs.is_complete and runs.target == 0.9 and runs.has_same_network
    assert runs.differences[-1] == "further options: --clip-grad 1"
    assert runs.seconds == pytest.approx(sum(run.epochs[1].evaluated_s for run in runs.runs) / 2)


def test_a_run_holds_its_command_and_its_epochs(quick: Comparison):
    flags = ["--peer-flags", "timm=--clip-grad 1", "--workers", "3", "--seeds", "2", "seed=5", "--record"]
    assert quick.run(*quick.peer("timm", OF_TIMM), *flags) == 0
    runs = quick.runs_of("timm")
    run = runs.runs[1]
    assert run.command.startswith("python train.py --data-dir") and run.command.endswith("--clip-grad 1")
    assert "--log-interval 1 " in run.command
    assert "--seed 6" in run.command and "--workers 3" in run.command
    assert runs.words == len(run.command.split()) - 2, "a user need not type --log-interval 1"
    assert [epoch.accuracy for epoch in run.epochs] == [0.85, 0.95, 0.95] and run.cpu_s > 0
    assert run.rate is not None and 0 < run.rate < 10 / 0.02, "a step of 10 images takes at least 0.02 s"


@pytest.mark.parametrize(
    ("top", "factor", "code", "verdict"),
    [
        (95, "1e9", 1, "target 1e+09 ×: missed"),
        (97, "2.5", 1, ": lower by more than two standard errors; target 2.5 ×: reached"),
        (94, "2.5", 0, ": not lower by more than two standard errors; target 2.5 ×: reached"),
    ],
)
def test_the_exit_code_is_that_of_the_targets(
    top: int, factor: str, code: int, verdict: str, quick: Comparison
):
    assert quick.run(*quick.peer("timm", OF_TIMM, top), "--seeds", "2", "--at-least", factor) == code
    assert verdict in quick.printed()[0]


def test_what_was_done_before_a_failure_is_kept_and_not_done_again(quick: Comparison):
    fails = quick.peer("timm", "print('out of memory'); raise SystemExit(3)")
    given = [*fails, "--seeds", "2", "--record", "--keep", str(quick.folder / "runs")]
    assert quick.run(*given) == 1
    out, error = quick.printed()
    assert "exit code 3" in error and "out of memory" in error and "1 of 2" in out
    assert [*quick.records] == ["quickres"] and not quick.runs_of("quickres").is_complete
    quick.peer("timm", OF_TIMM)
    assert quick.run(*given) == 0
    out, _ = quick.printed()
    assert "quickres, run 1" not in out and "quickres, run 2" in out and "the step alone," not in out
    runs = quick.runs_of("quickres")
    assert runs.is_complete and runs.step_rate == 2e5
    for key in ("optimizer.lr=0.5", "seed=9"):
        assert quick.run(*given, key) == 2
        assert "other settings" in quick.printed()[1]
    others = [*quick.peer("torchvision", OF_TORCHVISION), *given[2:]]
    assert quick.run(*others) == 2
    assert "is a run of timm, which does not take part; give --peer timm=DIR too" in quick.printed()[1]


def test_kept_runs_go_on_on_another_machine_with_other_folders(quick: Comparison):
    """The images and the checkouts lie elsewhere there; about.json names the images."""
    keep = ["--seeds", "1", "--record", "--keep", str(quick.folder / "runs")]
    watch = peers.watch

    def interrupt(command: list[str], folder: Path, *more: Any, **variables: str) -> Any:
        if folder.name == "timm":
            raise KeyboardInterrupt
        return watch(command, folder, *more, **variables)

    quick.monkeypatch.setattr(peers, "watch", interrupt)
    assert quick.run(*quick.peer("timm", OF_TIMM), *keep) == 130
    quick.monkeypatch.setattr(peers, "watch", watch)
    (quick.folder / "photos").rename(quick.folder / "elsewhere")
    quick.images = "elsewhere"
    (quick.folder / "elsewhere/about.json").write_text('{"name": "Photographs"}')
    checkout = quick.write("timm", OF_TIMM, 95).rename(quick.folder / "another_checkout")
    quick.printed()
    assert quick.run("--peer", f"timm={checkout}", *keep) == 0
    assert "quickres, run" not in quick.printed()[0]
    assert quick.runs_of("timm").is_complete and quick.runs_of("quickres").is_complete
    assert quick.records["timm"].data == quick.records["quickres"].data == "Photographs"


def test_the_command_of_ours_names_no_folder_of_the_checkout(quick: Comparison):
    quick.monkeypatch.setattr(quickres_train, "command_line", lambda recipe, keys: [PYTHON, recipe, *keys])
    root = Path(__file__).parents[2].resolve()
    ours = QuickresTrain(root, recipe=str(root / RECIPE), overrides=("seed=1",))
    task = SimpleNamespace(epochs=3, config=SimpleNamespace(log=SimpleNamespace(eval_every="1ep")))
    words = ours.typed(task, 2, Path("/out"))  # type: ignore[arg-type]
    assert words == ["python", RECIPE, "seed=2", "duration=3ep", "log.dir=/out"]


def test_ctrl_c_keeps_the_runs_that_are_done(quick: Comparison):
    watch = peers.watch

    def interrupt(command: list[str], folder: Path, *more: Any, **variables: str) -> Any:
        if folder.name == "timm":
            raise KeyboardInterrupt
        return watch(command, folder, *more, **variables)

    quick.monkeypatch.setattr(peers, "watch", interrupt)
    assert quick.run(*quick.peer("timm", OF_TIMM), "--seeds", "2", "--record") == 130
    assert "stopped after 1 of 4 runs" in quick.printed()[0]
    assert [*quick.records] == ["quickres"]


def test_a_log_that_is_written_in_another_way_is_an_error(quick: Comparison):
    assert quick.run(*quick.peer("timm", "print('Epoch 1: 95 %')")) == 1
    assert "timm: its log shows 0 evaluations, and 3 were expected" in quick.printed()[1]


@pytest.mark.slow
def test_our_own_run_is_read(comparison: Comparison):
    """Our run is real here. Its network is another than timm's."""
    comparison.replace_step()
    given = [*comparison.peer("timm", OF_TIMM, 20), "--seeds", "1", "--record", "--data", "noise"]
    assert comparison.run(*given, "log.tensorboard=false", "log.checkpoint_every=3ep") == 0
    assert "timm differs: another network: 11,181,642 parameters, not 10,997,573" in comparison.printed()[0]
    record, runs = comparison.records["quickres"], comparison.runs_of("quickres")
    assert record.rate is not None and record.rate > 0 and record.data == "noise"
    (run,) = runs.runs
    assert len(run.epochs) == 3 and 0 < run.epochs[0].evaluated_s < run.wall_s and run.cpu_s > 1
    assert "duration=3ep" in run.command and run.seed == 3


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ("", ["--peer: ", "give --peer timm=DIR"]),
        ("--peer lightning=DIR", ["--peer: lightning=DIR", "torchvision, timm"]),
        ("--peer timm=absent", ["--peer: absent holds no train.py"]),
        ("--peer timm=TIMM --peer timm=TIMM", ["--peer: timm is given twice"]),
        ("--peer timm=TIMM --peer-flags torchvision=--amp", ["--peer-flags: torchvision"]),
        ("--peer timm=TIMM --peer-flags timm='", ["--peer-flags: timm=': ", "quotation"]),
        ("--peer timm=TIMM --windows 5", ["--windows: ", "--epochs"]),
        ("--peer timm=TIMM --at-least 0", ["--at-least: ", "above 0"]),
        ("--peer timm=TIMM --at-least 2 --seeds 1", ["--at-least: ", "--seeds 2"]),
        ("--peer timm=TIMM --quick", ["--quick: "]),
        ("--peer timm=TIMM --keep absent/runs", ["--keep: absent/runs cannot be written"]),
        ("--peer timm=TIMM optimizer.name=adamw", ["optimizer.name=adamw: ", "optimizer.name=sgd"]),
        ("--peer timm=TIMM data.batch_size=41", ["data.batch_size: ", "40"]),
        ("--peer timm=TIMM data.train_folder=absent", ["data.train_folder", "absent"]),
    ],
)
def test_bad_input_is_told_before_anything_runs(more: str, parts: list[str], quick: Comparison):
    quick.monkeypatch.setattr(peers, "watch", lambda *_: pytest.fail("this takes time"))
    folder = str(quick.write("timm", OF_TIMM, 95))
    assert quick.run(*more.replace("TIMM", folder).split()) == 2
    _, error = quick.printed()
    assert error.startswith("error: ")
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize("options", [["--epochs", "1"], ["--seeds", "0"], ["--workers", "x"]])
def test_numbers_out_of_range_are_told(options: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["peers", RECIPE, "--epochs", "3", *options])
    assert f"{options[0]}: expected a whole number" in capsys.readouterr().err
