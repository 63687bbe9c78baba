"""Makes the index of all shards of a data set, keeps it in the cache, and reads it from there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic_io import write_json
from pipeline.data.files.cache import MANIFEST, mark_used, new_entry, remove_unused, report_damaged
from pipeline.data.files.cache_place import CachePlace, cannot_write
from pipeline.data.files.many import try_all
from pipeline.data.files.paths import Paths, counted, printable
from pipeline.data.files.shards.parquet_shards import import_pyarrow, index_parquet
from pipeline.data.files.shards.patterns import Shard
from pipeline.data.files.shards.samples import CannotWriteImages, ShardKeys, ShardSamples
from pipeline.data.files.shards.tar_shards import index_tar
from pipeline.errors import UserError

# Raise this number when the same shards give another index, or when the layout of the entry changes.
_FORMAT_VERSION = 3
_KIND = "shards"
_THREADS = 8
_MAX_NAMED = 10
_ARRAYS = ("block", "ends", "label", "shard", "offset", "num_bytes")


@dataclass(frozen=True, eq=False)
class PartIndex:
    """The samples of all shards of one part.

    Attributes:
        files: for each shard, the file with the bytes of its images.
        names: of the images, in their shards.
        label_names: the different labels, as texts.
        label: (N,) int32, index in `label_names`.
        shard: (N,) int32, index of the shard.
        offset, num_bytes: (N,) int64, place of each image in the file.
        class_names: of the labels 0, 1, …, where the shards give them.
        without_label: `SHARD:NAME` of samples that have no label, and are left out.
        warnings: what a person should know, a sentence each.
    """

    files: tuple[Path, ...]
    names: Paths
    label_names: tuple[str, ...]
    label: np.ndarray
    shard: np.ndarray
    offset: np.ndarray
    num_bytes: np.ndarray
    class_names: tuple[str, ...]
    without_label: tuple[str, ...]
    warnings: tuple[str, ...]


Shards = Mapping[str, Sequence[Shard]]  # by part


def read_index(shards: Shards, keys: ShardKeys, place: CachePlace, *, is_main: bool) -> dict[str, PartIndex]:
    """Read the index of the shards from the cache, or make it and store it.

    Args:
        shards: by part.
        keys: of images and labels.
        place: of the cache.
        is_main: True if this process may write.

    Raises:
        UserError: a shard cannot be indexed, or the cache cannot be written.
    """
    entry = place.entry(_KIND, _key(shards, keys))
    index = _read_entry(entry, shards, discard_damaged=is_main)
    if index is None:
        assert is_main, f"no cache {entry}: the main process has to build it first"
        try:
            with new_entry(entry) as building:
                _write_entry(building, make_index(shards, keys, building))
        except OSError as error:
            raise cannot_write(entry, error) from None
        remove_unused(entry, place.prefix(_KIND))
        index = _read_entry(entry, shards, discard_damaged=False)
        if index is None:
            raise UserError(f"data.cache_dir: {entry} is damaged and cannot be replaced; remove it")
    return index


def find_index(shards: Shards, keys: ShardKeys, place: CachePlace) -> dict[str, PartIndex]:
    """Return the index from the cache, or make one without places of images; write nothing.

    Raises:
        UserError: a shard cannot be indexed.
    """
    index = _read_entry(place.entry(_KIND, _key(shards, keys)), shards, discard_damaged=False)
    return index or make_index(shards, keys, None)


def make_index(shards: Shards, keys: ShardKeys, folder: Path | None) -> dict[str, PartIndex]:
    """Read all shards, in threads, with a progress bar on a terminal.

    Args:
        shards: by part.
        keys: of images and labels.
        folder: the images of Parquet files are written here; None: they are not read.

    Raises:
        UserError: a shard cannot be indexed; names it.
        OSError: the folder cannot be written.
    """
    every = [
        (part, number, shard) for part, of_part in shards.items() for number, shard in enumerate(of_part)
    ]
    samples: dict[int, ShardSamples] = {}
    unwritten: list[CannotWriteImages] = []
    if any(shard.path.suffix != ".tar" for _, _, shard in every):
        import_pyarrow()

    def work(number: int) -> None:
        part, index, shard = every[number]
        if shard.path.suffix == ".tar":
            samples[number] = index_tar(shard.path, keys)
            return
        try:
            with _copy_of(part, index, folder) as out:
                samples[number] = index_parquet(shard.path, keys, out)
        except CannotWriteImages as error:
            unwritten.append(error)
            raise

    failed = try_all(range(len(every)), work, _THREADS, "indexing shards", chunk_size=1)
    if unwritten and isinstance(unwritten[0].__cause__, OSError):
        raise unwritten[0].__cause__
    if failed:
        raise _wrong_shards(every, failed)
    return {
        part: _join(part, of_part, [samples[n] for n, item in enumerate(every) if item[0] == part], folder)
        for part, of_part in shards.items()
    }


def _copy_of(part: str, number: int, folder: Path | None) -> AbstractContextManager[RawIOBase | None]:
    if folder is None:
        return nullcontext()
    return (folder / _name_of_copy(part, number)).open(
        "wb", buffering=0
    )  # a full disk is no surprise at its end


def _name_of_copy(part: str, number: int) -> str:
    return f"{part}-{number:06d}.images"


def _wrong_shards(every: Sequence[tuple[str, int, Shard]], failed: Mapping[int, str]) -> UserError:
    """Return the error of shards that cannot be used; a reason that several share is given once."""
    by_reason: dict[str, list[str]] = {}
    for number, reason in failed.items():
        by_reason.setdefault(reason, []).append(printable(every[number][2].path))
    lines = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"\n  {names[0]}{more}: {reason}")
    more = f"\n  and {len(lines) - _MAX_NAMED} more reasons" if len(lines) > _MAX_NAMED else ""
    part = every[next(iter(failed))][0]
    return UserError(
        f"data.{part}_shards: {len(failed)} of {len(every)} shards cannot be used:"
        f"{''.join(lines[:_MAX_NAMED])}{more}"
    )


def _join(
    part: str, shards: Sequence[Shard], samples: Sequence[ShardSamples], folder: Path | None
) -> PartIndex:
    """Put the samples of the shards of one part together."""
    code_of: dict[str, int] = {}
    label = [code_of.setdefault(text, len(code_of)) for one in samples for text in one.labels]
    names = {one.class_names for one in samples if one.class_names}
    if len(names) > 1:
        raise UserError(
            f"data.{part}_shards: the shards name their classes differently; give shards of one data set"
        )
    counts = [len(one.names) for one in samples]
    if not any(counts):
        number = counted(len(samples), "shard")
        raise UserError(f"data.{part}_shards: there is no image in {number}; give other shards")
    return PartIndex(
        files=_files(part, shards, folder),
        names=Paths.of(name for one in samples for name in one.names),
        label_names=tuple(code_of),
        label=np.array(label, np.int32),
        shard=np.repeat(np.arange(len(samples), dtype=np.int32), counts),
        offset=np.concatenate([one.offset for one in samples]),
        num_bytes=np.concatenate([one.num_bytes for one in samples]),
        class_names=names.pop() if names else (),
        without_label=tuple(
            f"{shard.name}:{name}"
            for shard, one in zip(shards, samples, strict=True)
            for name in one.without_label
        ),
        warnings=tuple(
            f"data.{part}_shards: {printable(shard.path)}: {warning}"
            for shard, one in zip(shards, samples, strict=True)
            for warning in one.warnings
        ),
    )


def _files(part: str, shards: Sequence[Shard], folder: Path | None) -> tuple[Path, ...]:
    """Return the file with the images of each shard: itself, or the copy of a Parquet file's images."""
    return tuple(
        shard.path if shard.path.suffix == ".tar" or folder is None else folder / _name_of_copy(part, number)
        for number, shard in enumerate(shards)
    )


def _key(shards: Shards, keys: ShardKeys) -> str:
    """Return 16 hex digits that change with the state of the shards and with the keys."""
    state: list[Any] = [_FORMAT_VERSION, *keys]
    state += [
        [part, shard.name, shard.num_bytes, shard.mtime_ns]
        for part, of_part in shards.items()
        for shard in of_part
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def _write_entry(folder: Path, index: Mapping[str, PartIndex]) -> None:
    """Write the index into the folder of a new entry."""
    arrays, manifest = {}, {}
    for part, one in index.items():
        values = {"block": np.frombuffer(one.names.block, np.uint8), "ends": one.names.ends}
        values |= {name: getattr(one, name) for name in _ARRAYS[2:]}
        arrays |= {f"{part}-{name}": array for name, array in values.items()}
        copies = [file.name for file in one.files if file.parent == folder]
        manifest[part] = {
            "label_names": one.label_names,
            "class_names": one.class_names,
            "without_label": one.without_label,
            "warnings": one.warnings,
            "copies": {name: (folder / name).stat().st_size for name in copies},
        }
    np.savez(folder / "index.npz", allow_pickle=False, **arrays)
    write_json(folder / MANIFEST, manifest)


def _read_entry(entry: Path, shards: Shards, *, discard_damaged: bool) -> dict[str, PartIndex] | None:
    """Open an entry. Return None if there is none, or (with a warning) if it is damaged."""
    if not entry.exists():
        return None
    mark_used(entry)
    try:
        manifest = json.loads((entry / MANIFEST).read_text())
        # a zip file holds a checksum of each array, which is compared here
        with (entry / "index.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {
                part: _read_part(part, of_part, entry, manifest[part], arrays)
                for part, of_part in shards.items()
            }
    except Exception as error:  # a damaged zip file raises many kinds of errors
        report_damaged(entry, error, discard=discard_damaged)
        return None


def _read_part(part: str, shards: Sequence[Shard], entry: Path, manifest: Any, arrays: Any) -> PartIndex:
    block, ends, *numbers = (arrays[f"{part}-{name}"] for name in _ARRAYS)
    label, shard, offset, num_bytes = numbers
    if any(len(array) != len(ends) for array in numbers):
        raise ValueError(f"{part} is incomplete")
    for name, size in manifest["copies"].items():
        if (entry / name).stat().st_size != size:
            raise ValueError(f"{name} is incomplete")
    return PartIndex(
        files=_files(part, shards, entry),
        names=Paths(block.tobytes(), ends),
        label_names=tuple(manifest["label_names"]),
        label=label,
        shard=shard,
        offset=offset,
        num_bytes=num_bytes,
        class_names=tuple(manifest["class_names"]),
        without_label=tuple(manifest["without_label"]),
        warnings=tuple(manifest["warnings"]),
    )
