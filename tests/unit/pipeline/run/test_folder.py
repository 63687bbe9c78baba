"""Run folders: opened, found again, refused, and skipped if they are damaged."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.atomic_io import read_json
from pipeline.config import config_hash, load_config
from pipeline.errors import UserError
from pipeline.run.checkpoint import folder_of, verify
from pipeline.run.checkpoint_writer import CheckpointWriter
from pipeline.run.folder import RunFolder, find_run
from pipeline.run.lock import RunLock
from tests.tiny import open_and_release, tiny_config, tiny_trainer


def config_in(folder: Path, *overrides: str):
    return tiny_config(f"log.dir={folder}", *overrides)


# --- opening ------------------------------------------------------------------------------------------------


def test_a_new_run(tmp_path: Path):
    config = config_in(tmp_path / "runs")
    run = open_and_release(config)
    assert re.fullmatch(r"recipe-\d{8}-\d{6}", run.path.name)
    assert load_config(run.path / "config.yaml") == config
    assert (run.resume_from, run.warnings) == (None, ())
    latest = tmp_path / "runs/latest"
    assert (
        latest.is_symlink()
        and latest.resolve() == run.path.resolve()
        and not os.path.isabs(os.readlink(latest))
    )


def test_two_runs_of_one_second(tmp_path: Path):
    first, second, named = (
        open_and_release(config_in(tmp_path, *keys)).path for keys in ((), (), ("log.name=other",))
    )
    assert first != second and named.name.startswith("other-")
    assert (tmp_path / "latest").resolve() == named.resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["latest", first.name, second.name, named.name]
    )


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"log.dir: .*file.* cannot be written .*choose another folder with log.dir="
    ):
        open_and_release(config_in(tmp_path / "file"))


# --- finding again ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Path:
    """Checkpoints of steps 1 and 2, to be linked into run folders."""
    folder = tmp_path_factory.mktemp("checkpoints")
    writer, trainer = CheckpointWriter(folder, "hash"), tiny_trainer(tiny_config())
    for trainer.state.step in (1, 2):
        writer.save(trainer.state.snapshot())
    writer.close()
    return folder


class Runs:
    """Makes runs in a folder, in any state and order."""

    def __init__(self, folder: Path, checkpoint: Path):
        self.folder, self.checkpoint, self.age = folder, checkpoint, 0

    def make(self, *overrides: str, steps: tuple[int, ...] = (1, 2), finished: bool = False) -> Path:
        config = config_in(self.folder, *overrides)
        run = open_and_release(config)
        for step in steps:
            source, target = (
                folder_of(checkpoints, step) for checkpoints in (self.checkpoint, run.checkpoints)
            )
            target.mkdir(parents=True)
            for name in ("weights.safetensors", "state.pt"):
                os.symlink(source / name, target / name)
            manifest = read_json(source / "manifest.json") | {"config_hash": config_hash(config)}
            (target / "manifest.json").write_text(json.dumps(manifest))
        if finished:
            run.result.write_text("{}")
        self.age += 1
        os.utime(run.path / "config.yaml", (10**9 + self.age, 10**9 + self.age))
        return run.path

    def resume(self, value: str = "auto", *overrides: str, folder: Path | None = None) -> RunFolder:
        return open_and_release(config_in(folder or self.folder, f"resume={value}", *overrides))


@pytest.fixture
def runs(tmp_path: Path, checkpoint: Path) -> Runs:
    return Runs(tmp_path, checkpoint)


def test_auto_takes_the_newest_unfinished_run_of_the_same_config(runs: Runs):
    runs.make()
    wanted = runs.make()
    runs.make("optimizer.lr=0.2")
    runs.make(finished=True)
    runs.make(steps=())
    found = runs.resume()
    assert (found.path.resolve(), found.warnings) == (wanted.resolve(), ())
    assert found.resume_from == folder_of(found.checkpoints, 2)
    assert (runs.folder / "latest").resolve() == wanted.resolve()


@pytest.mark.parametrize("keys", [("log.name=other",), ("log.explain=true", "log.log_every=1st")])
def test_where_and_how_a_run_is_written_is_not_its_config(runs: Runs, keys: tuple[str, ...]):
    assert runs.make().resolve() == runs.resume("auto", *keys).path.resolve()


@pytest.mark.parametrize("value", ["none", "auto"])
def test_a_folder_in_the_place_of_the_link(runs: Runs, value: str):
    """As where runs were copied by what follows links; a copied run would be the newest unfinished one."""
    run = runs.make()
    (runs.folder / "latest").unlink()
    shutil.copytree(run, runs.folder / "latest")
    with pytest.raises(UserError, match=r"latest: is a folder.*; rename or remove it"):
        runs.resume(value)
    assert not list(runs.folder.glob(".latest-*"))


def test_auto_starts_anew_where_nothing_matches(runs: Runs):
    made = {runs.make("seed=1"), runs.make(finished=True), runs.make(steps=())}
    (runs.folder / "no-run").mkdir()
    broken = runs.make()
    (broken / "config.yaml").write_text("of: another version\n")
    found = runs.resume()
    assert found.resume_from is None and found.path not in {*made, broken}
    assert runs.resume(folder=runs.folder / "none").resume_from is None


@pytest.mark.parametrize("value", ["auto", "latest"])
def test_a_run_that_is_being_trained_is_left_alone(runs: Runs, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.run.lock._PATIENCE_S", 0.2)
    path = runs.make(steps=())  # before its first checkpoint
    with RunLock() as lock:
        lock.take(path)
        told = (
            rf"resume: .*{path.name} .* process {os.getpid()} on .*; wait for its end, or .* with resume=none"
        )
        with pytest.raises(UserError, match=told):
            runs.resume("auto" if value == "auto" else str(path))
        assert runs.make().is_dir()  # one beside it
    assert runs.resume().resume_from is not None


def test_auto_says_what_is_wrong_where_it_starts_anew(runs: Runs):
    path = runs.make()
    for step in (1, 2):
        (folder_of(path / "checkpoints", step) / "state.pt").unlink()
    found = runs.resume()
    assert found.resume_from is None
    *damaged, last = found.warnings
    assert [
        f"step-{step:08d}/state.pt: missing" in text for step, text in zip((2, 1), damaged, strict=True)
    ] == [True, True]
    assert last.startswith("resume=auto: ") and "starting a new run" in last


def test_a_path_is_resumed(runs: Runs):
    older, newer = runs.make(), runs.make()
    assert runs.resume(str(older)).path == older
    assert runs.resume(str(runs.folder / "latest")).path.resolve() == older.resolve()  # it points there now
    assert newer.is_dir()


@pytest.mark.parametrize(
    ("make", "overrides", "told"),
    [
        ({"finished": True}, (), r"is finished; see .*result.json, or start a new run with resume=none"),
        (
            {},
            ("optimizer.lr=0.2", "seed=9", "runtime.hang_timeout_s=60"),
            r"another config \(different: seed, optimizer.lr\); give the same keys",
        ),
        ({"steps": ()}, (), r"has no intact checkpoint; start a new run with resume=none"),
    ],
)
def test_a_path_that_cannot_be_resumed(
    runs: Runs, make: dict[str, Any], overrides: tuple[str, ...], told: str
):
    path = runs.make(**make)
    with pytest.raises(UserError, match=rf"^resume: {path} .*{told}"):
        runs.resume(str(path), *overrides)


def test_a_run_that_hung_is_resumed_with_more_patience(runs: Runs):
    path = runs.make()
    for value in ("auto", str(path)):
        assert runs.resume(value, "runtime.hang_timeout_s=7200").path == path


def test_a_path_that_is_no_run(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(runs.folder)
    known = runs.make()
    with pytest.raises(
        UserError, match=rf"nowhere: not a run folder \(no config.yaml in it\). Known: .*{known.name}"
    ):
        runs.resume(str(runs.folder / "nowhere"))
    with pytest.raises(
        UserError, match=rf"Known: .*{known.name}"
    ):  # the folder of the runs, as one that forgets `/latest` gives it
        find_run(runs.folder)
    with pytest.raises(UserError, match="none yet"):
        find_run(runs.folder / "deep/nowhere/at-all")


# --- neighbours ---------------------------------------------------------------------------------------------


def with_config(text: bytes) -> Callable[[Path], object]:
    """Return what makes a folder with this config.yaml and no other file."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "config.yaml").write_bytes(text)

    return make


def make_config_a_folder(path: Path) -> None:
    (path / "config.yaml").mkdir(parents=True)


def link_config_to_itself(path: Path) -> None:
    path.mkdir()
    (path / "config.yaml").symlink_to("config.yaml")


NEIGHBOURS = {
    "empty": with_config(b""),
    "comments": with_config(b"# nothing yet\n"),
    "NUL": with_config(b"\0\0"),
    "cut off": with_config(b"seed: 3\nduration: 3ep\ndata:\n  dataset: digits\n"),
    "of another program": with_config(b"of: another program\n"),
    "no YAML": with_config(b"]"),
    "no mapping": with_config(b"3\n"),
    "no UTF-8": with_config(b"seed: \xff\n"),
    "deep": with_config(b"[" * 10_000),
    "folder": make_config_a_folder,
    "loop": link_config_to_itself,
    "without config": lambda path: (path / "checkpoints").mkdir(parents=True),
}


@pytest.mark.parametrize("name", NEIGHBOURS)
@pytest.mark.parametrize("found", [True, False])
def test_a_bad_neighbour_is_skipped_with_one_warning(runs: Runs, name: str, found: bool):
    """It is the newest."""
    run = runs.make() if found else None
    bad = runs.folder / "bad"
    NEIGHBOURS[name](bad)
    (runs.folder / "latest").unlink(missing_ok=True)
    resumed = runs.resume()
    assert (resumed.path == run) == found
    (warning,) = resumed.warnings[:1] if found else resumed.warnings[:-1]
    assert warning.startswith(f"resume=auto: {bad} is skipped (")


@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda path: path.symlink_to("elsewhere")], ids=["folder", "link"]
)
def test_a_lock_file_that_is_none(runs: Runs, make: Callable[[Path], object]):
    older, newer = runs.make(), runs.make()
    (newer / ".lock").unlink()
    make(newer / ".lock")
    found = runs.resume()
    assert found.path == older and f"{newer} is skipped" in found.warnings[0]
    with pytest.raises(UserError, match=rf"^{newer}/\.lock: .*; remove or mend it, or .* resume=none"):
        runs.resume(str(newer))
    assert not (newer / "elsewhere").exists()


def test_a_system_that_refuses_all_locks_locks_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    """As a security policy may: filelock takes that for the lock of another process."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.run.lock._PATIENCE_S", 0.2)
    run = runs.make()
    monkeypatch.setattr("fcntl.flock", refuse)
    assert runs.resume().path == run


def test_links_that_lead_nowhere_and_files_beside_the_runs(runs: Runs):
    run = runs.make()
    (runs.folder / "gone").symlink_to("nowhere")
    (runs.folder / "picture.png").touch()
    (runs.folder / "latest").unlink()
    (runs.folder / "latest").symlink_to("latest")
    (runs.folder / f".latest-{os.getpid()}").symlink_to("x")  # a process with this number was killed here
    found = runs.resume()
    assert (found.path, found.warnings) == (run, ())
    assert os.readlink(runs.folder / "latest") == run.name


def test_a_folder_that_cannot_be_filled_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, _: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pipeline.run.resume.write_whole", full)
    with pytest.raises(UserError, match=r"log.dir: .*No space left on device.*log.dir="):
        open_and_release(config_in(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "\0", "[]", "[" * 10_000])
def test_a_damaged_result_is_written_again(runs: Runs, content: str):
    run = runs.make()
    (run / "result.json").write_text(content)
    assert runs.resume().path == runs.resume(str(run)).path == run


# --- checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_resumed_by_its_path(runs: Runs):
    run = runs.make()
    with pytest.raises(UserError, match=r"^resume: .* no step 82; it holds 1, 2$"):
        runs.resume(str(run / "checkpoints/step-82"))
    for name in ("step-1", "step-00000001"):
        found = runs.resume(str(run / "checkpoints" / name))
        assert (found.path, found.resume_from) == (run, folder_of(run / "checkpoints", 1))
    (folder_of(run / "checkpoints", 1) / "state.pt").unlink()
    with pytest.raises(UserError, match=r"step-00000001/state\.pt: missing .*resume=none"):
        runs.resume(str(run / "checkpoints/step-1"))


def test_a_checkpoint_that_cannot_be_used_names_the_keys_for_another_one(runs: Runs):
    checkpoints = runs.make("log.name=a").rename(runs.folder / "a b") / "checkpoints"
    (folder_of(checkpoints, 2) / "state.pt").unlink()
    with pytest.raises(UserError) as caught:
        verify(folder_of(checkpoints, 2))
    key = shlex.quote(f"resume={checkpoints}/step-1")
    assert key.startswith("'") and key in str(caught.value) and "--checkpoint step-1 " in str(caught.value)
    assert runs.resume(f"{checkpoints}/step-1").resume_from == folder_of(checkpoints, 1)


def test_damaged_checkpoints_are_passed_over_with_a_warning(runs: Runs):
    path = runs.make(steps=(1,))
    damaged = folder_of(path / "checkpoints", 3)
    damaged.mkdir()
    found = runs.resume()
    assert found.resume_from == folder_of(path / "checkpoints", 1)
    assert len(found.warnings) == 1 and str(damaged) in found.warnings[0]
    assert config_hash(load_config(found.path / "config.yaml")) == config_hash(config_in(runs.folder))


def test_after_an_earlier_checkpoint_the_later_ones_are_put_aside(runs: Runs):
    run = runs.make()
    found = runs.resume(str(run / "checkpoints/step-1"))
    assert any("later checkpoints are put aside" in warning for warning in found.warnings)
    assert (run / "checkpoints/step-00000002.later").is_dir()
    found = runs.resume()
    assert found.resume_from == folder_of(run / "checkpoints", 1)


def test_a_pipe_in_the_place_of_a_config_is_skipped(runs: Runs):
    run = runs.make()
    (other := runs.folder / "pipe").mkdir()
    os.mkfifo(other / "config.yaml")
    os.utime(other / "config.yaml", (2**33, 2**33))
    (runs.folder / "latest").unlink()
    found = runs.resume()
    assert found.path == run
    (warning,) = found.warnings
    assert str(other) in warning and "is not a file" in warning and "remove the folder" in warning
