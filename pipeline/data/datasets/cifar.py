"""Loads CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their standard files.

The files are pickles, which can run code when they are loaded. So each file is read once, the hash of its
bytes is compared, and the same bytes are unpickled by a reader that accepts only arrays and plain values.
"""

import hashlib
import http.client
import io
import logging
import os
import pickle
import socket
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

from pipeline.atomic_io import write_whole
from pipeline.data.batch import NUM_CHANNELS
from pipeline.data.datasets.image_set import ImageSet
from pipeline.data.datasets.splits import RawSplits
from pipeline.data.files.first_time import note_first_time
from pipeline.errors import UserError

_log = logging.getLogger(__name__)

_SIDE = 32
_TIMEOUT_S = 30


@dataclass(frozen=True)
class CifarFiles:
    """The standard files of one data set. Hashes are MD5, as published with the files and as in torchvision.

    Attributes:
        title: name of the data set for messages.
        torchvision_name: class in `torchvision.datasets` that has the address of the download.
        archive, archive_md5: the archive to download.
        folder: folder of the unpacked files, inside `data.root`.
        train, test: (file, MD5) of the parts.
        meta: (file, MD5) of the class names.
        label_key, names_key: key of the labels in the parts, and of the class names in `meta`.
    """

    title: str
    torchvision_name: str
    archive: str
    archive_md5: str
    folder: str
    train: tuple[tuple[str, str], ...]
    test: tuple[tuple[str, str], ...]
    meta: tuple[str, str]
    label_key: str
    names_key: str


CIFAR_FILES = {
    "cifar10": CifarFiles(
        title="CIFAR-10",
        torchvision_name="CIFAR10",
        archive="cifar-10-python.tar.gz",
        archive_md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        label_key="labels",
        names_key="label_names",
    ),
    "cifar100": CifarFiles(
        title="CIFAR-100",
        torchvision_name="CIFAR100",
        archive="cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
}


def load_cifar(root: Path, name: str, *, is_main: bool = True) -> RawSplits:
    """Read CIFAR from `root`. If files are missing, the main process unpacks or downloads the archive first.

    Args:
        root: `data.root`.
        name: a key of `CIFAR_FILES`.
        is_main: True if this process may download and unpack.

    Raises:
        UserError: no files and no download, or a file that is not the published one.
    """
    files = CIFAR_FILES[name]
    parts, class_names = _read_parts(root, name, (*files.train, *files.test), is_main)
    train, test = parts[: len(files.train)], parts[len(files.train) :]
    return RawSplits(_concatenate(train), _concatenate(test), class_names)


def load_cifar_test(root: Path, name: str) -> tuple[ImageSet, tuple[str, ...]]:
    """Read the test images and the class names; the training images may be missing. Otherwise `load_cifar`.

    Raises:
        UserError: as for `load_cifar`.
    """
    parts, class_names = _read_parts(root, name, CIFAR_FILES[name].test, is_main=True)
    return _concatenate(parts), class_names


_Part = tuple[np.ndarray, list[int]]  # images and labels of one file


def _read_parts(
    root: Path, name: str, wanted: tuple[tuple[str, str], ...], is_main: bool
) -> tuple[list[_Part], tuple[str, ...]]:
    """Read these (file, MD5) parts, and the class names. Missing files are unpacked or downloaded first."""
    files = CIFAR_FILES[name]
    folder, missing = root / files.folder, _missing(root, files, (*wanted, files.meta))
    if missing:
        assert is_main, f"{files.title} is not in {root}: the main process has to fetch it first"
        try:
            _unpack(_fetch_archive(root, files), folder, missing)
        except OSError as error:
            raise UserError(
                f"data.root: cannot unpack {files.archive} in {root} ({error}); "
                "set data.root to a folder you can write to"
            ) from None
    names = _read_pickle(folder, files.meta).get(files.names_key)
    if not isinstance(names, list) or not all(isinstance(item, bytes) for item in names):
        raise _damaged(folder / files.meta[0], f"has no list {files.names_key}")
    class_names = tuple(item.decode() for item in names)

    def read_part(item: tuple[str, str]) -> _Part:
        return _read_part(folder, item, files.label_key, len(class_names))

    # threads: hashing and copying release the lock of the interpreter
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(read_part, wanted)), class_names


def missing_files(root: Path, name: str) -> list[tuple[str, str]]:
    """Return (file, MD5) of the files that are not in `root` yet."""
    files = CIFAR_FILES[name]
    return _missing(root, files, (*files.train, *files.test, files.meta))


def _missing(root: Path, files: CifarFiles, wanted: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    return [item for item in wanted if not (root / files.folder / item[0]).exists()]


def _read_part(folder: Path, item: tuple[str, str], label_key: str, num_classes: int) -> _Part:
    """Return images and labels of one file."""
    path, content = folder / item[0], _read_pickle(folder, item)
    data, labels, size = content.get("data"), content.get(label_key), NUM_CHANNELS * _SIDE**2
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (size,):
        raise _damaged(path, f"its data is not uint8 of shape (N, {size})")
    images = np.ascontiguousarray(rearrange(data, "n (c h w) -> n h w c", c=NUM_CHANNELS, h=_SIDE))
    return images, _check_labels(path, label_key, labels, len(data), num_classes)


def _check_labels(path: Path, label_key: str, labels: Any, num_images: int, num_classes: int) -> list[int]:
    if not isinstance(labels, list) or len(labels) != num_images:
        raise _damaged(path, f"it does not have one of {label_key} per image")
    if not all(isinstance(label, int) and 0 <= label < num_classes for label in labels):
        raise _damaged(path, f"its {label_key} are not all in 0..{num_classes - 1}")
    return labels


def _concatenate(parts: list[_Part]) -> ImageSet:
    images = np.concatenate([images for images, _ in parts]) if len(parts) > 1 else parts[0][0]
    return ImageSet(images, np.array([label for _, labels in parts for label in labels], np.int64))


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"data.root: {path} is not the published file: {reason}. "
        f"Delete {path}: the next start unpacks or downloads it again"
    )


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of plain values and numpy arrays, which refuses everything else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module_name, global_name) == ("numpy", "dtype"):
            return np.dtype
        is_multiarray = module_name in ("numpy.core.multiarray", "numpy._core.multiarray")
        if is_multiarray and global_name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no data needs")


def _read_pickle(folder: Path, item: tuple[str, str]) -> dict[str, Any]:
    """Read the dictionary in a file (FILE, MD5).

    Its strings stay bytes, as Python 2 wrote them; only the keys are decoded.
    """
    path = folder / item[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"data.root: cannot read {path} ({error.strerror})") from None
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != item[1]:
        raise _damaged(path, f"its MD5 is {md5} and should be {item[1]}")
    try:
        values = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise _damaged(path, f"cannot be unpickled: {error}") from None
    if not isinstance(values, dict):
        raise _damaged(path, "it holds no dictionary")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in values.items()}


def _fetch_archive(root: Path, files: CifarFiles) -> Path:
    """Return the archive in `root`. If it is missing or is another file, torchvision downloads it."""
    archive = root / files.archive
    if _has_md5(archive, files.archive_md5):
        return archive
    from torchvision import datasets  # takes seconds to import
    from torchvision.datasets.utils import download_url

    url = getattr(datasets, files.torchvision_name).url
    old_timeout = socket.getdefaulttimeout()
    try:
        # torchvision sets no timeout: with a firewall that drops packets it would wait for ever
        socket.setdefaulttimeout(_TIMEOUT_S)
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as folder:
            download_url(url, folder, files.archive, files.archive_md5)
            os.replace(Path(folder) / files.archive, archive)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        other = f"the {files.archive} there is another file, by its MD5, and " if archive.exists() else ""
        raise UserError(
            f"data.root: {files.title} is not in {root}; {other}downloading failed ({error}). "
            f"Put {files.archive} (MD5 {files.archive_md5}) into {root.resolve()} and start again, or train "
            "on class folders: data.dataset=folder data.root=DIR, with DIR/train/CLASS/* and DIR/test/CLASS/*"
        ) from None
    finally:
        socket.setdefaulttimeout(old_timeout)
    return archive


def _has_md5(path: Path, md5: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5


def _unpack(archive: Path, folder: Path, wanted: list[tuple[str, str]]) -> None:
    """Write the wanted files, and no others, into FOLDER. Paths in the archive are never used."""
    note_first_time()
    _log.info("unpacking %s", archive)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "r:gz") as tar:
        for name, _ in wanted:
            try:
                info = tar.getmember(f"{folder.name}/{name}")
            except KeyError:
                raise _damaged(archive, f"holds no {name}") from None
            member = tar.extractfile(info) if info.isreg() else None  # a link would lead elsewhere
            if member is None:
                raise _damaged(archive, f"its {name} is not a file")
            write_whole(folder / name, member.read())
