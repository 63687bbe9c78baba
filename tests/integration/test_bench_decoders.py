"""Tests `bench decoders` on made images."""

import os
import re
from functools import partial
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.measure import cores, session, workloads
from benchmarks.measure.workloads import LoaderWorkload
from benchmarks.publish.records import append, read
from benchmarks.suites import decoders
from benchmarks.suites.decoders import Pinned
from tests.pictures import make_folder

QUICKSTART = "configs/quickstart.yaml"


def test_decoders_are_timed_on_fewer_cores_and_the_best_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root, available = make_folder(tmp_path / "images"), os.sched_getaffinity(0)
    folder = ["data.dataset=folder", f"data.root={root}", "data.image_size=16", "data.cache_below=8"]
    keys = [*folder, "data.batch_size=4", "augment.cutout=0", "runtime.device=cpu", "precision.mode=fp32"]
    asked = ["--cores", f"1,{len(available) + 1}", "--windows", "1", "--steps", "2", "--alone", "--record"]
    monkeypatch.setattr(workloads, "_IMAGES_AHEAD", 8)
    monkeypatch.setattr(session, "append", partial(append, results=tmp_path / "results"))
    used: list[int] = []
    monkeypatch.setattr(Pinned, "finish", lambda self, _: used.append(len(os.sched_getaffinity(0))))
    run_of_loader = LoaderWorkload.run

    def run(self: LoaderWorkload, steps: int) -> None:
        used.append(len(os.sched_getaffinity(0)))
        run_of_loader(self, steps)

    monkeypatch.setattr(LoaderWorkload, "run", run)
    assert main(["decoders", QUICKSTART, *keys, *asked]) == 0
    out = capsys.readouterr().out
    assert set(used) == {1, len(available)} and os.sched_getaffinity(0) == available
    assert f"{len(available) + 1} cores: left out" in out and "decoder cpu: there is no GPU" in out
    assert "decoders engines, cuda, mixed, both: left out, there is no GPU" in out
    assert re.search(
        r"Best decoder: on 1 core cpu with [\d,]+ images/sec \(data\.decoder=cpu data\.num_th", out
    )
    (record,) = read(tmp_path / "results")
    assert (record.benchmark, record.variant, record.model) == ("decoder", "cpu, 1 core", None)
    assert record.cpu_cores == len(available)
    asked = ["--loaders", "dali", "--batch-sizes", "4", "--windows", "1", "--steps", "2", "--record"]
    assert main(["loaders", QUICKSTART, *keys, *asked]) == 0
    *_, record = read(tmp_path / "results")
    assert (record.loader, record.config["data"]["decoder"]) == ("dali", "cpu")  # and not `auto`


def test_kept_numbers_of_cores_are_not_timed_again_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    images, kept = make_folder(tmp_path / "images"), tmp_path / "kept"
    monkeypatch.setattr(decoders.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(cores.os, "sched_setaffinity", lambda *_: None)
    timed: list[str] = []
    time_decoders = decoders._time

    def note(session: session.Session, rig: object, variants: list[decoders._Variant]) -> None:
        timed.append(variants[0].label)
        time_decoders(session, None, variants)

    monkeypatch.setattr(decoders, "_time", note)

    def run(root: Path, results: str, *more: str) -> int:
        monkeypatch.setattr(session, "append", partial(append, results=tmp_path / results))
        monkeypatch.setattr(session, "read", partial(read, tmp_path / results))
        folder = ["data.dataset=folder", f"data.root={root}", "data.image_size=16", "data.cache_below=8"]
        keys = [*folder, "data.batch_size=4", "augment.cutout=0", "runtime.device=cpu", "--decoders", "cpu"]
        asked = ["--cores", "1,2", "--windows", "1", "--steps", "2", "--alone", "--record"]
        return main(["decoders", QUICKSTART, *keys, *asked, "--keep", str(kept), *more])

    assert run(images, "first") == 0
    lines = kept.read_text().splitlines()
    kept.write_text(lines[0] + "\n")  # as if it had been stopped on 2 cores
    timed.clear()
    images.rename(tmp_path / "elsewhere")
    for _ in range(2):
        assert run(tmp_path / "elsewhere", "second") == 0
        assert "on 1 core cpu with" in (out := capsys.readouterr().out) and "on 2 cores cpu with" in out
    assert timed == ["cpu, 2 cores"]
    assert [record.variant for record in read(tmp_path / "second")] == ["cpu, 1 core", "cpu, 2 cores"]
    assert run(tmp_path / "elsewhere", "second", "data.prefetch=2") == 2
    assert f"{kept}:1 holds records of other settings" in capsys.readouterr().err
    kept.write_text("{}\n")
    assert run(tmp_path / "elsewhere", "second") == 2
    assert f"{kept}:1 holds no records; remove the line" in capsys.readouterr().err


def test_decoders_that_cannot_be_timed_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = ["data.dataset=folder", f"data.root={make_folder(tmp_path / 'images')}", "data.image_size=16"]
    keys = [*folder, "data.cache_below=8", "data.batch_size=4", "augment.cutout=0", "runtime.device=cpu"]
    assert main(["decoders", QUICKSTART, *keys, "--decoders", "engines,cuda", "--alone"]) == 2
    assert "--decoders: engines, cuda need a GPU" in capsys.readouterr().err
    (tmp_path / "images/about.json").write_text("{}")
    assert main(["decoders", QUICKSTART, *keys, "--decoders", "cpu", "--alone"]) == 2
    assert "does not say what the images are" in capsys.readouterr().err
    (tmp_path / "images/about.json").unlink()
    assert main(["decoders", QUICKSTART, "--alone", "runtime.device=cpu"]) == 2
    assert "needs streamed images" in capsys.readouterr().err
    assert main(["decoders", QUICKSTART, *keys, "--decoders", "cpu", "--gpu-shares", "0.2", "--alone"]) == 2
    assert "--gpu-shares: has no effect without both" in capsys.readouterr().err
    for option, value, message in (
        ("--gpu-shares", "0.2,2", "'2' is no fraction from 0 to 1"),
        ("--cores", "4,0", "expected a whole number, 1 or more, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(["decoders", option, value])
        assert message in capsys.readouterr().err
