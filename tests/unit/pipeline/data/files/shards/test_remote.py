"""Tests shards behind an address, in fsspec's memory and on a local http server: copied once, and again."""

import builtins
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.config import ShardData
from pipeline.data.files.shards.remote import Copies, is_address
from pipeline.errors import UserError
from tests.pictures import make_folder
from tests.shards import load_shards, pack


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yield its address, and the list of files that were fetched."""
    fetched: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            fetched.append(self.path)
            super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return pack(
        make_folder(folder / "images", train=4, test=2),
        folder / "tar",
        "tar",
        {"train": "train", "val": "val"},
    )


@pytest.fixture
def in_memory(packed: Path) -> Iterator[str]:
    """Return the address of the shards in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for path in packed.glob("*.tar"):
        system.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def same(actual: Any, expected: Any) -> bool:
    return all(
        (ours.labels == theirs.labels).all()
        and [file.rpartition("/")[2] for file in ours.sample_paths] == list(theirs.sample_paths)
        and (ours.pixels(np.arange(len(ours))) == theirs.pixels(np.arange(len(theirs)))).all()
        for ours, theirs in ((actual.train, expected.train), (actual.test, expected.test))
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"root": "{address}"},
        {
            "train_shards": "{address}/train-{{00000..00001}}-of-00002.tar",
            "test_shards": "{address}/val-*.tar",
        },
        {"root": "{address}", "train_shards": "train-*.tar", "test_shards": "val-00000-of-00002.tar"},
    ],
    ids=["root", "patterns", "both"],
)
def test_shards_in_memory_are_those_of_the_folder(
    packed: Path, in_memory: str, tmp_path: Path, keys: dict[str, str]
):
    here = {"cache_dir": str(tmp_path / "cache"), "image_size": 24}
    given = {key: value.format(address=in_memory) for key, value in keys.items()}
    splits = load_shards(**{"root": str(tmp_path / "root"), **given, **here})
    expected = load_shards(packed, image_size=24, cache_dir=str(tmp_path / "other"))
    if len(splits.test) < len(expected.test):
        expected = load_shards(
            packed, image_size=24, cache_dir=str(tmp_path / "other"), test_shards="val-00000-of-00002.tar"
        )
    assert same(splits, expected)
    assert not (tmp_path / "root").exists()


def test_folders_behind_an_address_name_the_parts(packed: Path, tmp_path: Path):
    served, cache = tmp_path / "served", tmp_path / "cache"
    for part in ("train", "val"):
        (served / part).mkdir(parents=True)
        for path in packed.glob(f"{part}-*.tar"):
            shutil.copy(path, served / part / path.name.removeprefix(f"{part}-"))
    with http_server(served) as (address, fetched):
        splits = load_shards(address, cache_dir=str(cache))
    assert fetched.count("/") == 1, "the folder was listed for each part"
    assert splits.train.sample_paths[0].startswith("train/00000-of-00002.tar:")
    assert (splits.train.labels == load_shards(packed, cache_dir=str(tmp_path / "other")).train.labels).all()
    other = load_shards(address, cache_dir=str(cache), is_main=False)
    assert list(other.test.sample_paths) == list(splits.test.sample_paths)


def test_an_http_server_is_asked_for_each_file_once(packed: Path, tmp_path: Path):
    with http_server(packed) as (address, fetched):
        first = load_shards(address, cache_dir=str(tmp_path))
        shards = [path for path in fetched if path.endswith(".tar")]
        assert len(shards) == len(set(shards)) == 4
        load_shards(address, cache_dir=str(tmp_path))
        assert [path for path in fetched if path.endswith(".tar")] == shards, "fetched again"
    assert same(first, load_shards(packed, cache_dir=str(tmp_path / "other")))


def test_a_changed_file_is_fetched_again(in_memory: str, tmp_path: Path):
    before = load_shards(in_memory, cache_dir=str(tmp_path))
    system = fsspec.filesystem("memory")
    one, other = (f"/bucket/val-0000{number}-of-00002.tar" for number in (0, 1))
    system.pipe_file(one, system.cat_file(other))
    after = load_shards(in_memory, cache_dir=str(tmp_path))
    assert (before.test.labels == [0, 0, 1, 1]).all() and (after.test.labels == [1, 1, 1, 1]).all()


def test_copies_are_used_when_the_address_cannot_be_reached(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with http_server(packed) as (address, _):
        expected = load_shards(address, cache_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        actual = load_shards(address, cache_dir=str(tmp_path))
    assert (actual.train.labels == expected.train.labels).all()
    assert (
        "cannot list" in caplog.text and "2 of 2 shards cannot be compared with their origin" in caplog.text
    )
    with pytest.raises(
        UserError, match=r"^data.root: cannot list http://127.* or name the shards by a pattern"
    ):
        load_shards(address, cache_dir=str(tmp_path / "empty"))


def test_other_processes_take_the_copies_of_the_main_process(in_memory: str, tmp_path: Path):
    main = load_shards(in_memory, cache_dir=str(tmp_path))
    fsspec.filesystem("memory").rm("/bucket/train-00000-of-00002.tar")
    other = load_shards(in_memory, cache_dir=str(tmp_path), is_main=False)
    assert list(other.train.sample_paths) == list(main.train.sample_paths)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"train_shards": "{address}/train-{{0..1}}.tar"},
            r"2 of 2 shards cannot be fetched; check the addresses .*:\n .*no such file",
        ),
        ({"train_shards": "memory://*/train.tar"}, "only the last part of an address may hold"),
        ({"train_shards": "{address}/x-*.tar"}, r"no shard fits memory://bucket/x-\*.tar"),
        ({"root": "nowhere://bucket"}, "nowhere://bucket cannot be read .*Protocol not known.*give a folder"),
        (
            {"root": "{address}/empty"},
            r"cannot list memory://bucket/empty \(there is no such file or folder\)",
        ),
        ({"root": "memory://"}, r"it holds bucket: set data.root to the folder of the shards; expected"),
        ({"train_shards": "{address}/t.tar.gz"}, r"unpack it where it is stored, .* it: gzip -d t.tar.gz"),
    ],
)
def test_what_cannot_be_fetched_is_named(in_memory: str, tmp_path: Path, keys: dict[str, str], message: str):
    given: dict[str, Any] = {key: value.format(address=in_memory) for key, value in keys.items()}
    with pytest.raises(UserError, match=message):
        load_shards(**{"root": in_memory, **given}, cache_dir=str(tmp_path))


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make the import of a package fail."""
    load = builtins.__import__

    def refuse(name: str, *arguments: Any, **keys: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return load(name, *arguments, **keys)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: Path
):
    without(monkeypatch, "fsspec")
    with pytest.raises(
        UserError, match=r"^data.root: memory://x is read with fsspec, .*'quickres\[remote\]'"
    ):
        load_shards("memory://x", cache_dir=str(tmp_path))
    without(monkeypatch, "pyarrow")
    for name in ("train-0.parquet", "val-0.parquet"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"^data.dataset: Parquet files are read with pyarrow, .*'quickres\[parquet\]'"
    ):
        load_shards(tmp_path)


def test_a_package_for_the_address_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "s3fs")
    with pytest.raises(UserError, match=r"s3://bucket/x: a package is missing .*s3fs for s3://"):
        load_shards("s3://bucket/x", cache_dir=str(tmp_path))


def test_a_dry_run_fetches_nothing(in_memory: str, tmp_path: Path):
    config = ShardData(root=in_memory, cache_dir=str(tmp_path))
    copies = Copies(config, may_fetch=False)
    assert "train-00000-of-00002.tar" in copies.names_in(in_memory)
    with pytest.raises(UserError, match=r"^data.root: 1 shard, such as .*a dry run copies nothing"):
        copies.fetch("data.root", [f"{in_memory}/train-00000-of-00002.tar"])
    assert list(tmp_path.rglob("*")) == []


def test_a_copy_that_is_cut_off_is_not_kept(in_memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "get_file", lambda self, _, to: Path(to).write_bytes(b"cut"))
    with pytest.raises(UserError, match=r"3 of [0-9]+ bytes came; try again"):
        load_shards(in_memory, cache_dir=str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".part")]


def test_what_is_an_address():
    assert is_address("s3://bucket/a") and is_address("hf://datasets/a/b")
    assert not is_address("/data") and not is_address("C:/data") and not is_address("data//x")
