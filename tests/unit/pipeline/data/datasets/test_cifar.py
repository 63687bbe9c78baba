"""Tests reading CIFAR from its standard files: small copies, with their own hashes."""

import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.config import CifarData
from pipeline.data.datasets import cifar
from pipeline.data.datasets.cifar import CIFAR_FILES, load_cifar
from pipeline.data.datasets.image_set import ImageSet
from pipeline.data.datasets.load import load_splits, load_test
from pipeline.errors import UserError

PICKLER: Any = pickle._Pickler  # the pickler in Python, whose parts can be replaced


class Python2Pickler(PICKLER):
    """A pickler that writes strings as Python 2 did, which wrote the published files."""

    def save_python2_string(self, value: str | bytes) -> None:
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch: ClassVar = {**PICKLER.dispatch, str: save_python2_string, bytes: save_python2_string}


def python2_pickle(values: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(values)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def part(
    seed: int, count: int = 20, num_classes: int = 10, key: str = "labels", **changes: object
) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, key: generator.permutation(np.arange(count) % num_classes).tolist(), **changes}


def standard_files(name: str) -> dict[str, dict[str, Any]]:
    files = CIFAR_FILES[name]
    key, num_classes = files.label_key, 10 if name == "cifar10" else 100
    values = {
        file: part(seed, 120 if num_classes == 100 else 20, num_classes, key)
        for seed, (file, _) in enumerate(files.train + files.test)
    }
    values[files.meta[0]] = {files.names_key: [f"name {label}" for label in range(num_classes)]}
    return values


@pytest.fixture
def lay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the files of a data set, or with ARCHIVE its archive, and expect their hashes."""

    def write(name: str, values: dict[str, Any] | None = None, archive: bool = False) -> Path:
        files = CIFAR_FILES[name]
        contents = {
            file: value if isinstance(value, bytes) else python2_pickle(value)
            for file, value in (values or standard_files(name)).items()
        }
        hashes = {file: hashlib.md5(content).hexdigest() for file, content in contents.items()}

        def hashed(item: tuple[str, str]) -> tuple[str, str]:
            return item[0], hashes[item[0]]

        changed = replace(
            files,
            train=tuple(map(hashed, files.train)),
            test=tuple(map(hashed, files.test)),
            meta=hashed(files.meta),
        )
        if archive:
            path = tmp_path / files.archive
            with tarfile.open(path, "w:gz") as tar:
                for file, content in {**contents, "../../escaped": b"no", "readme.html": b"no"}.items():
                    member = tarfile.TarInfo(f"{files.folder}/{file}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            changed = replace(changed, archive_md5=hashlib.md5(path.read_bytes()).hexdigest())
        else:
            (tmp_path / files.folder).mkdir()
            for file, content in contents.items():
                (tmp_path / files.folder / file).write_bytes(content)
        monkeypatch.setitem(CIFAR_FILES, name, changed)
        return tmp_path

    return write


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_reads_the_standard_files(lay_out: Any, name: str) -> None:
    root, values, files = lay_out(name), standard_files(name), CIFAR_FILES[name]
    splits: Any = load_splits(
        CifarData.model_validate({"dataset": name, "root": str(root)}), seed=0, is_main=False
    )
    for actual, expected in ((splits.train, files.train), (splits.test, files.test)):
        data = np.concatenate([values[file]["data"] for file, _ in expected])
        assert (actual.images == data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
        assert actual.labels.tolist() == [
            label for file, _ in expected for label in values[file][files.label_key]
        ]
    assert splits.class_names == tuple(values[files.meta[0]][files.names_key])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_names_and_hashes_are_those_of_torchvision(name: str) -> None:
    from torchvision import datasets

    files = CIFAR_FILES[name]
    theirs = getattr(datasets, files.torchvision_name)
    assert [list(item) for item in files.train] == theirs.train_list
    assert [list(item) for item in files.test] == theirs.test_list
    assert files.meta == (theirs.meta["filename"], theirs.meta["md5"])
    assert files.names_key == theirs.meta["key"]
    assert (files.archive, files.archive_md5, files.folder) == (
        theirs.filename,
        theirs.tgz_md5,
        theirs.base_folder,
    )


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_changed_file_is_named_and_not_opened(
    lay_out: Any, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    root = lay_out("cifar10")
    path = root / "cifar-10-batches-py" / file
    changed = path.read_bytes()[:-1] + b"!"
    path.write_bytes(changed)
    opened: list[bytes] = []
    reader = cifar._ArraysOnly
    monkeypatch.setattr(
        cifar,
        "_ArraysOnly",
        lambda stream, **options: opened.append(stream.getvalue()) or reader(stream, **options),
    )
    with pytest.raises(
        UserError, match=rf"data\.root: .*/{file} is not the published file: its MD5 .* Delete .*/{file}"
    ):
        load_cifar(root, "cifar10")
    assert changed not in opened
    assert bool(opened) == (file != "batches.meta")


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("hash_is_right", [False, True])
def test_no_pickle_runs_code(lay_out: Any, tmp_path: Path, hash_is_right: bool) -> None:
    ran = tmp_path / "ran"
    evil = pickle.dumps(Malicious(ran))
    if hash_is_right:
        lay_out("cifar10", {**standard_files("cifar10"), "data_batch_2": evil})
    else:
        lay_out("cifar10")
        (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(evil)
    with pytest.raises(UserError, match=r"data_batch_2 is not the published file"):
        load_cifar(tmp_path, "cifar10")
    assert not ran.exists()
    pickle.loads(evil)
    assert ran.exists()  # the plain unpickler would have run the code


@pytest.mark.parametrize(
    ("file", "value", "reason"),
    [
        ("data_batch_1", part(0, labels=[10] * 20), r"its labels are not all in 0\.\.9"),
        ("data_batch_1", part(0, labels=[-1] * 20), r"its labels are not all in 0\.\.9"),
        ("data_batch_1", part(0, labels=[0] * 19), "not have one of labels per image"),
        ("test_batch", part(0, data=np.zeros((20, 3071), np.uint8)), "not uint8 of shape"),
        ("test_batch", part(0, data=np.zeros((20, 3072), np.float32)), "not uint8 of shape"),
        ("test_batch", {}, "not uint8 of shape"),
        ("test_batch", b"", "cannot be unpickled"),
        ("test_batch", b"not a pickle", "cannot be unpickled"),
        ("test_batch", pickle.dumps([1]), "no dictionary"),
        ("batches.meta", {"label_names": "airplane"}, "no list label_names"),
    ],
)
def test_content_that_does_not_fit_is_named(lay_out: Any, file: str, value: Any, reason: str) -> None:
    root = lay_out("cifar10", {**standard_files("cifar10"), file: value})
    with pytest.raises(UserError, match=rf"/{file} is not the published file: .*{reason}"):
        load_cifar(root, "cifar10")


def test_without_network_one_message_says_what_to_do(tmp_path: Path, no_network: None) -> None:
    root = tmp_path / "data"
    with pytest.raises(UserError) as caught:
        load_splits(CifarData.model_validate({"dataset": "cifar10", "root": str(root)}), seed=0)
    message = str(caught.value)
    for text in (
        "data.root: CIFAR-10 is not in",
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        str(root.resolve()),
    ):
        assert text in message
    assert "data.dataset=folder data.root=DIR" in message
    assert "\n" not in message
    assert list(root.iterdir()) == []


def test_another_file_in_the_archives_place_is_named(tmp_path: Path, no_network: None) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"the cifar-100-python\.tar\.gz there is another file, by its MD5"):
        load_cifar(tmp_path, "cifar100")


def test_archive_put_there_by_hand_is_unpacked(lay_out: Any, no_network: None) -> None:
    root = lay_out("cifar10", archive=True)
    assert len(load_cifar(root, "cifar10").train) == 100
    folder = root / "cifar-10-batches-py"
    expected = {
        file
        for file, _ in (
            *CIFAR_FILES["cifar10"].train,
            *CIFAR_FILES["cifar10"].test,
            CIFAR_FILES["cifar10"].meta,
        )
    }
    assert {path.name for path in folder.iterdir()} == expected  # and no file was written elsewhere
    assert {path.name for path in root.iterdir()} == {folder.name, "cifar-10-python.tar.gz"}
    assert not (root.parent / "escaped").exists()


@pytest.mark.parametrize("kind", ["link out", "hard link", "folder", "absent", "device"])
def test_an_archive_that_leads_elsewhere(
    lay_out: Any, no_network: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even with the expected hash, only the contents of regular files with the wanted names are used."""
    root = lay_out("cifar10", archive=True)
    files, secret = CIFAR_FILES["cifar10"], root.parent / "secret"
    secret.write_text("not for you")
    path, inside = root / files.archive, f"{files.folder}/data_batch_1"
    with tarfile.open(path) as old:
        saved = [(member, old.extractfile(member)) for member in old.getmembers() if member.name != inside]
        with tarfile.open(root / "new", "w:gz") as tar:
            for member, content in saved:
                tar.addfile(member, content)
            evil = tarfile.TarInfo(inside)
            evil.type = {
                "link out": tarfile.SYMTYPE,
                "hard link": tarfile.LNKTYPE,
                "folder": tarfile.DIRTYPE,
            }.get(kind, tarfile.CHRTYPE)
            evil.linkname = str(secret)
            if kind != "absent":
                tar.addfile(evil)
            for name in (f"/{secret}", "../secret", f"{files.folder}/../../secret"):
                tar.addfile(tarfile.TarInfo(name))
    (root / "new").replace(path)
    changed = replace(files, archive_md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setitem(CIFAR_FILES, "cifar10", changed)
    with pytest.raises(
        UserError, match=r"cifar-10-python\.tar\.gz is not the published file: .*data_batch_1"
    ):
        load_cifar(root, "cifar10")
    assert secret.read_text() == "not for you"
    assert not (root / inside).exists() and {item.name for item in root.iterdir()} == {
        files.archive,
        files.folder,
    }


def test_a_deleted_file_is_unpacked_again(lay_out: Any, no_network: None) -> None:
    root = lay_out("cifar10", archive=True)
    load_cifar(root, "cifar10")
    (root / "cifar-10-batches-py/test_batch").unlink()
    assert len(load_cifar(root, "cifar10").test) == 20


def test_only_the_main_process_fetches(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the main process"):
        load_cifar(tmp_path, "cifar10", is_main=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Start a local server of a folder; yield the folder and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("intact", [True, False])
def test_download(
    lay_out: Any, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, intact: bool
) -> None:
    folder, address = server
    root = lay_out("cifar10", archive=True)
    archive = CIFAR_FILES["cifar10"].archive
    (root / archive).rename(folder / archive)
    if not intact:
        (folder / archive).write_bytes((folder / archive).read_bytes()[:-1])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.url", f"{address}/{archive}")
    if intact:
        assert len(load_cifar(root, "cifar10").train) == 100
        assert {path.name for path in root.iterdir()} == {"served", "cifar-10-batches-py", archive}
    else:
        with pytest.raises(UserError, match="downloading failed"):
            load_cifar(root, "cifar10")
        assert {path.name for path in root.iterdir()} == {"served"}


def test_a_root_that_cannot_be_written(lay_out: Any, no_network: None) -> None:
    root = lay_out("cifar10", archive=True)
    (root / "cifar-10-batches-py").write_text("a file where the folder should be")
    with pytest.raises(
        UserError, match=r"data\.root: cannot unpack cifar-10-python\.tar\.gz .* a folder you can write to"
    ):
        load_cifar(root, "cifar10")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_test_images_are_read_alone(lay_out: Any, name: str):
    root = lay_out(name)
    expected = load_cifar(root, name)
    for file, _ in CIFAR_FILES[name].train:
        (root / CIFAR_FILES[name].folder / file).unlink()
    config = CifarData.model_validate({"dataset": name, "root": str(root)})
    test = load_test(config, 0, expected.class_names)
    assert isinstance(test, ImageSet) and isinstance(expected.test, ImageSet)
    np.testing.assert_array_equal(test.images, expected.test.images)
    np.testing.assert_array_equal(test.labels, expected.test.labels)
    with pytest.raises(UserError, match=r"data\.root: the classes are .* trained on cat; give the data set"):
        load_test(config, 0, ("cat",))
