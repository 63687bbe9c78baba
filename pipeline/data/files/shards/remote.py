"""Copies shards from an address (s3://, gs://, https://, …) into a folder of this machine, with fsspec."""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.atomic_io import write_json
from pipeline.config import ShardData, path_of
from pipeline.data.files.cache_place import cannot_write
from pipeline.data.files.many import reason_of, try_all
from pipeline.data.files.paths import counted, printable
from pipeline.errors import UserError
from pipeline.process.cache_dirs import cache_folder

_log = logging.getLogger(__name__)

_FETCHING_THREADS = 8  # the threads wait for the network
# What file systems tell of a file that changes with its content; the names differ by file system.
_STATE = (
    *("size", "ETag", "etag", "mtime", "created", "LastModified", "updated", "md5Hash", "generation"),
    *("Content-MD5", "Digest", "Last-Modified"),
)
_ABANDONED_S = 24 * 3600
_NAMES = ".names.json"  # the files of an address, as the main process has listed them
_MAX_NAMED = 3


def is_address(text: str) -> bool:
    """Return True for a text such as `s3://bucket/train.tar`.

    >>> is_address("https://host/train.tar"), is_address("/data/train.tar")
    (True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


class Copies:
    """The copies of shards from an address: whole files, fetched once, and again when they have changed.

    The copies are in `data.cache_dir`, by default in the cache folder of the user.

    Args:
        config: the section `data`.
        is_main: False: this process takes the copies that the main process has made.
        may_fetch: False: nothing is copied.
    """

    def __init__(self, config: ShardData, *, is_main: bool = True, may_fetch: bool = True):
        given = config.cache_dir
        base = path_of("data.cache_dir", given) if given is not None else cache_folder()
        self._folder, self._is_main, self._may_fetch = base / "shards", is_main, is_main and may_fetch
        self._root = config.root.rstrip("/")
        self._names: dict[str, list[str]] = {}

    def folder_of(self, address: str) -> Path:
        """Return the folder of the copies of all files in the folder with this address."""
        address = address.rstrip("/")
        digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:8]
        name = re.sub(r"[^\w.-]", "_", address.rpartition("/")[2]) or "root"
        return self._folder / f"{name}-{digest}"

    def _path_of(self, address: str) -> Path:
        """Return the copy of a file; the folders in `data.root` stay folders."""
        if address.startswith(f"{self._root}/"):
            return self.folder_of(self._root) / address.removeprefix(f"{self._root}/")
        folder, _, name = address.rpartition("/")
        return self.folder_of(folder) / name

    def names_in(self, address: str) -> list[str]:
        """Return the sorted names of the files and folders in the folder with this address.

        It is listed once.

        Raises:
            UserError: it cannot be listed.
        """
        if address not in self._names:
            self._names[address] = self._list(address)
        return self._names[address]

    def _list(self, address: str) -> list[str]:
        record = self.folder_of(address) / _NAMES
        if not self._is_main:
            return _read_json(record) or []
        try:
            system, path = _file_system("data.root", address)
            names = [str(name).rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)]
        except UserError:
            raise
        except Exception as error:
            names = _read_json(record)
            if not names:
                raise _cannot_read("data.root", address, error) from None
            _log.warning(
                "data.root: cannot list %s (%s); the copies made before are used", address, _reason(error)
            )
            return names
        names = sorted(dict.fromkeys(names))
        if self._may_fetch:
            try:
                record.parent.mkdir(parents=True, exist_ok=True)
                write_json(record, names)
            except OSError as error:
                raise cannot_write(record, error) from None
        return names

    def expand(self, key: str, address: str) -> list[str]:
        """Return the addresses that a pattern with `*` stands for; one without it stands for itself.

        Raises:
            UserError: the file system cannot be searched.
        """
        if "*" not in address:
            return [address]
        parent, _, pattern = address.rpartition("/")
        if "*" in parent:
            raise UserError(
                f"{key}: {address}: only the last part of an address may hold `*`; write the folder out"
            )
        regex = re.compile(re.escape(pattern).replace(r"\*", ".*"))
        return [f"{parent}/{name}" for name in self.names_in(parent) if regex.fullmatch(name)]

    def fetch(self, key: str, addresses: Sequence[str]) -> list[Path]:
        """Return the copies of these files; fetch those that are missing or have changed.

        Raises:
            UserError: a file cannot be fetched, or may not be fetched now.
        """
        paths = [self._path_of(address) for address in addresses]
        if not self._may_fetch:
            missing = [address for address, path in zip(addresses, paths, strict=True) if not path.exists()]
            if missing:
                raise UserError(
                    f"{key}: {counted(len(missing), 'shard')}, such as {missing[0]}, not copied to this "
                    "machine yet: start the run (a dry run copies nothing); on several hosts, set "
                    "data.cache_dir to a folder that all of them see"
                )
            return paths

        if addresses:
            _file_system(key, addresses[0])  # a missing package is told once

        unreachable: list[str] = []

        def work(number: int) -> None:
            reason = _fetch(key, addresses[number], paths[number])
            if reason is not None:
                unreachable.append(f"{addresses[number]}: {reason}")

        failed = try_all(range(len(paths)), work, _FETCHING_THREADS, "fetching shards", chunk_size=1)
        if failed:
            raise UserError(
                f"{key}: {len(failed)} of {len(paths)} shards cannot be fetched; check the addresses and "
                "your rights, and start again:"
                + "".join(f"\n  {addresses[number]}: {failed[number]}" for number in [*failed][:_MAX_NAMED])
            )
        if unreachable:
            _log.warning(
                "%s: %d of %d shards cannot be compared with their origin, so the copies made before are "
                "used; the first: %s",
                *(key, len(unreachable), len(paths), min(unreachable)),
            )
        return paths


def _fetch(key: str, address: str, path: Path) -> str | None:
    """Copy one file, unless the copy is there and the file has not changed.

    Returns:
        The reason why a copy made before could not be compared with the file; None in all other cases.

    Raises:
        Exception: of the file system, if there is no copy.
    """
    record = path.with_name(f".{path.name}.json")
    system, remote = _file_system(key, address)
    copied = _read_json(record) if path.exists() else None
    try:
        state = _state_of(system.info(remote))
    except Exception as error:
        if copied is None:
            raise OSError(_reason(error)) from None
        return _reason(error)
    if copied == state and state.get("size") in (None, str(path.stat().st_size)):
        return None
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
            if time.time() - other.stat().st_mtime > _ABANDONED_S:
                other.unlink(missing_ok=True)
        system.get_file(remote, str(partial))
        size = str(partial.stat().st_size)
        if state.get("size") not in (None, size):
            raise ValueError(f"{size} of {state['size']} bytes came; try again")
        os.replace(partial, path)
        write_json(record, state)
    except PermissionError as error:
        raise cannot_write(path, error) from None
    finally:
        partial.unlink(missing_ok=True)
    return None


def _reason(error: Exception) -> str:
    """Return in a few words why a file system could not answer; some call every fault a missing file."""
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        return reason_of(cause) if isinstance(cause, Exception) else "there is no such file or folder"
    return reason_of(error)


def _state_of(info: dict[str, Any]) -> dict[str, str]:
    return {name: str(info[name]) for name in _STATE if info.get(name) is not None}


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _file_system(key: str, address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it.

    Raises:
        UserError: fsspec, or the package for this kind of address, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(
            f"{key}: {printable(address)} is read with fsspec, which is not installed: "
            "pip install 'quickres[remote]'"
        ) from None
    try:
        return url_to_fs(address)
    except ImportError as error:
        raise UserError(
            f"{key}: {printable(address)}: a package is missing for such addresses ({error}); install it "
            "beside quickres[remote]: s3fs for s3://, gcsfs for gs://"
        ) from None
    except ValueError as error:
        raise UserError(
            f"{key}: {printable(address)} cannot be read ({error}); give a folder, or https://, "
            "s3:// or gs://"
        ) from None


def _cannot_read(key: str, address: str, error: Exception) -> UserError:
    return UserError(
        f"{key}: cannot list {printable(address)} ({_reason(error)}); check the address and your rights, "
        "or name the shards by a pattern with braces in data.train_shards and data.test_shards"
    )
