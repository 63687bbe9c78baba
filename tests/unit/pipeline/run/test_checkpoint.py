"""Checkpoints: content, damage, which are kept, and that opening one runs no code."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import atomic_io
from pipeline.errors import TrainingError, UserError
from pipeline.models import build_model
from pipeline.run.checkpoint import folder_of, load_weights, newest_intact, steps_in, verify
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.records import BestEvaluation
from pipeline.training.state import load_checkpoint
from pipeline.training.trainer import Trainer
from tests.python import run_python
from tests.tiny import assert_equal, start, tiny_config, train_steps

pytestmark = pytest.mark.usefixtures("process_state")


def write(folder: Path, *steps: int, best: int | None = None, trainer: Trainer | None = None) -> Trainer:
    """Checkpoints of an untrained network at these steps."""
    trainer = trainer or start()
    writer = CheckpointWriter(folder, "0123456789ab")
    for step in steps:
        trainer.state.step = step
        if step == best:
            trainer.state.best = BestEvaluation(
                accuracy=0.5, step=step, selected_on="test", test_accuracy=0.5
            )
        writer.save(trainer.state.snapshot())
    writer.close()
    return trainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """A folder with checkpoints of steps 1 and 2; read only."""
    folder = tmp_path_factory.mktemp("saved")
    write(folder, 1, 2)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_contents(saved: Path):
    folder = folder_of(saved, 2)
    assert folder.name == "step-00000002"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "state.pt",
        "weights.safetensors",
    ]
    manifest = verify(folder)
    assert (manifest["format"], manifest["step"], manifest["config_hash"]) == (1, 2, "0123456789ab")
    assert set(manifest["sha256"]) == {"weights.safetensors", "state.pt"}
    assert (
        load_file(folder / "weights.safetensors").keys()
        == build_model(tiny_config().model, 4).state_dict().keys()
    )
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 2


def test_nothing_else_is_left_behind(saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.usefixtures("short_network")
@pytest.mark.parametrize(("source", "target"), [("default", "none"), ("none", "default")])
def test_weights_load_compiled_and_not(tmp_path: Path, source: str, target: str):
    backend = "compile.backend=aot_eager"
    trainer = start(f"compile.mode={source}", backend)
    train_steps(trainer, 1)
    write(tmp_path, 1, trainer=trainer)
    other = start(f"compile.mode={target}", backend, "seed=9")
    load_checkpoint(folder_of(tmp_path, 1), other.state)
    assert_equal(dict(other.state.model.state_dict()), dict(trainer.state.model.state_dict()))
    assert not any(key.startswith(("_orig_mod", "module")) for key in load_weights(folder_of(tmp_path, 1)))


# --- damage -------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def write_a_foreign_file(path: Path) -> None:
    path.write_text("<html>not what you wanted</html>")


# not one bit of a manifest, which has no checksum of its own
DAMAGES = [
    (name, damage)
    for name in ("weights.safetensors", "state.pt")
    for damage in (truncate, flip_a_bit, write_a_foreign_file, Path.unlink)
]
DAMAGES += [("manifest.json", damage) for damage in (truncate, write_a_foreign_file, Path.unlink)]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damage_is_named_and_the_earlier_checkpoint_used(copy: Path, name: str, damage: Any):
    damaged = folder_of(copy, 2) / name
    damage(damaged)
    with pytest.raises(UserError, match=r"use an earlier"):
        verify(damaged.parent)
    found, messages = newest_intact(copy)
    assert found == folder_of(copy, 1)
    assert len(messages) == 1 and str(damaged) in messages[0]


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 1, "sha256": []}',
        '{"format": 1, "sha256": 5}',
        '{"format": 1, "sha256": {"state.pt": 1}}',
        "[" * 10_000,
        '{"format": 1, "step": "2", "sha256": {}}',
        '"\xff"',
    ],
)
def test_a_manifest_of_another_shape_is_named(copy: Path, manifest: str):
    path = folder_of(copy, 2) / "manifest.json"
    path.write_text(manifest, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{path}: .*use an earlier checkpoint: "):
        verify(path.parent)
    assert newest_intact(copy)[0] == folder_of(copy, 1)


def test_a_later_format_is_named(copy: Path):
    path = folder_of(copy, 2) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(UserError, match="checkpoint format 2, this version reads 1"):
        verify(path.parent)


def test_a_foreign_checkpoint_is_named(copy: Path):
    """Whole, but of another run, or of another step."""
    found, told = newest_intact(copy, "another hash")
    assert found is None and len(told) == 2
    assert told[0] == f"{folder_of(copy, 2)}: saved by a run of another config, or by another version"
    folder_of(copy, 2).rename(folder_of(copy, 3))
    found, told = newest_intact(copy, "0123456789ab")
    assert (found, told) == (
        folder_of(copy, 1),
        [f"{folder_of(copy, 3)}: holds step 2 of another folder"],
    )


def test_without_any_intact_checkpoint(copy: Path, tmp_path: Path):
    for step in (1, 2):
        truncate(folder_of(copy, step) / "state.pt")
    found, messages = newest_intact(copy)
    assert found is None and len(messages) == 2
    assert newest_intact(tmp_path / "nowhere") == (None, [])


def vouch_for(folder: Path) -> None:
    """Write the manifest anew, for the files as they are."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {name: atomic_io.sha256(folder / name) for name in manifest["sha256"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


class Malicious:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize(
    "save",
    [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))],
    ids=["torch", "pickle"],
)
def test_code_in_a_checkpoint_is_refused_and_not_run(copy: Path, tmp_path: Path, save: Any):
    """Checksums that fit do not make a file trustworthy: anyone can compute them."""
    folder, witness = folder_of(copy, 2), tmp_path / "was-here"
    save({"step": 2, "evil": Malicious(witness)}, folder / "state.pt")
    vouch_for(folder)
    verify(folder)
    with pytest.raises(UserError, match=rf"^{folder}/state\.pt: .*code, which is not run; use an earlier"):
        load_checkpoint(folder, start().state)
    assert not witness.exists()
    torch.load(folder / "state.pt", weights_only=False) if save is torch.save else pickle.loads(
        (folder / "state.pt").read_bytes()
    )
    assert witness.exists()  # it would have been run


@pytest.mark.parametrize("value", [5, [], {}, {"step": 1}, None])
def test_a_state_that_is_none_of_ours(copy: Path, value: Any):
    folder = folder_of(copy, 2)
    torch.save(value, folder / "state.pt")
    vouch_for(folder)
    with pytest.raises(UserError, match=rf"^{folder}/state\.pt: .*use an earlier checkpoint"):
        load_checkpoint(folder, start().state)


def test_weights_that_are_no_safetensors(copy: Path):
    folder = folder_of(copy, 2)
    write_a_foreign_file(folder / "weights.safetensors")
    vouch_for(folder)
    with pytest.raises(UserError, match=r"weights\.safetensors: cannot be read"):
        load_checkpoint(folder, start().state)


@pytest.mark.parametrize(
    "other",
    ["model.shortcut=B", "data.num_classes=5", "precision.mode=fp16", "optimizer.decay_norm_and_bias=false"],
)
def test_a_checkpoint_of_another_config(saved: Path, other: str):
    with pytest.raises(
        UserError, match=r"does not fit this config's model and optimizer .*; give the run's own config"
    ):
        load_checkpoint(folder_of(saved, 2), start(other).state)


# --- which are kept -----------------------------------------------------------------------------------------


def kept(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in steps_in(folder)]


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path):
    trainer = write(tmp_path, 1, 2, 3, best=2)
    assert kept(tmp_path) == [3, 2]
    write(tmp_path, 4, 5, 6, trainer=trainer)
    assert kept(tmp_path) == [6, 5, 2]
    write(tmp_path, 10, 7, best=10, trainer=trainer)
    assert kept(tmp_path) == [10, 7, 6]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 10


def test_what_lies_ahead_of_a_run_that_went_back_is_no_newer(tmp_path: Path):
    """The checkpoints of steps 8 and 10 are damaged: the run continues from 6 and keeps its new ones."""
    trainer = write(tmp_path, 6, 8, 10, best=6)
    for step in (8, 10):
        truncate(folder_of(tmp_path, step) / "state.pt")
    trainer.state.best = None
    write(tmp_path, 7, trainer=trainer)
    assert kept(tmp_path) == [7, 6]
    assert newest_intact(tmp_path)[0] == folder_of(tmp_path, 7)


def test_what_others_put_beside_the_checkpoints_stays(tmp_path: Path):
    """A copy that a user has set aside, an archive."""
    trainer = write(tmp_path, 1, 2)
    shutil.copytree(folder_of(tmp_path, 1), tmp_path / "step-00000001-good")
    (tmp_path / "step-00000002.tar").write_bytes(b"")
    write(tmp_path, 3, 4, 5, trainer=trainer)
    assert [path.name for path in steps_in(tmp_path)] == [
        "step-00000005",
        "step-00000004",
        "step-00000002.tar",
        "step-00000001-good",
    ]


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    write(tmp_path, 99_999, 100_000)
    assert kept(tmp_path) == [100_000, 99_999]


def test_a_step_reached_again_replaces_its_checkpoint(copy: Path):
    trainer = start("seed=9")
    truncate(folder_of(copy, 2) / "state.pt")
    write(copy, 2, trainer=trainer)
    other = start()
    load_checkpoint(folder_of(copy, 2), other.state)
    assert_equal(dict(other.state.model.state_dict()), dict(trainer.state.model.state_dict()))


def test_after_going_back_the_best_is_the_one_of_then(tmp_path: Path):
    write(tmp_path, 1, 2, best=2)
    trainer = start()
    trainer.state.best = BestEvaluation(accuracy=0.25, step=1, selected_on="test", test_accuracy=0.25)
    write(tmp_path, 3, trainer=trainer)
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 1


# --- writing ------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_earlier_ones_and_is_told(copy: Path, monkeypatch: pytest.MonkeyPatch):
    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = CheckpointWriter(copy, "hash")
    trainer = start()
    trainer.state.step = 3
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", no_space)
        writer.save(trainer.state.snapshot())
        with pytest.raises(TrainingError, match=rf"{copy}: .*No space left on device.*resume=auto"):
            writer.close()
    assert sorted(path.name for path in copy.iterdir()) == ["step-00000001", "step-00000002"]
    assert newest_intact(copy)[0] == folder_of(copy, 2)


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_is_cleared(copy: Path):
    half = copy / ".step-00000003.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert newest_intact(copy)[0] == folder_of(copy, 2)
    write(copy, 4)
    assert not half.exists()


def test_files_follow_the_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write(tmp_path, 1, trainer=start("ema.decay=0.9"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder_of(tmp_path, 1).iterdir()}
    names = ("ema.safetensors", "manifest.json", "state.pt", "weights.safetensors")
    assert modes == dict.fromkeys(names, 0o640)


def test_tensors_that_share_no_memory_with_training(tmp_path: Path):
    """Channels-last weights are saved in their logical order."""
    trainer = write(tmp_path, 1)
    weights = load_weights(folder_of(tmp_path, 1))
    assert all(value.is_contiguous() for value in weights.values())
    assert trainer.state.model.get_parameter("stem.0.weight").is_contiguous(memory_format=torch.channels_last)
    save_file(weights, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        folder_of(tmp_path, 1) / "weights.safetensors"
    ).read_bytes()


# a network of two threads, whose weights are copied to another layout in two threads too
_SAVE = """
import os, sys, time
from pathlib import Path
import torch
from pipeline.run.checkpoint import Snapshot
from pipeline.run.checkpoint_writer import CheckpointWriter

torch.set_num_threads(2)
torch.ones(1000, 1000).add_(1)
before = len(os.listdir("/proc/self/task"))
writer = CheckpointWriter(Path(sys.argv[1]), "0123456789ab")
for step in (1, 2):
    weights = torch.ones(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    writer.save(Snapshot(step, {"weights.safetensors": {"a": weights}}, {}, None))
    writer.wait()
until = time.monotonic() + PATIENCE
while (left := len(os.listdir("/proc/self/task")) - before) and time.monotonic() < until:
    time.sleep(0.05)
print(left)
"""


def test_a_write_leaves_no_threads(tmp_path: Path):
    """With more threads than cores, those of OpenMP no longer spin: training is half as fast from then on."""
    done = run_python("-c", _SAVE.replace("PATIENCE", "10"), str(tmp_path), OMP_NUM_THREADS="2")
    assert done.stdout.strip() == "0"
    assert len(list(tmp_path.glob("step-*"))) == 2
