"""Finds the shards of a data set: by a pattern with braces, or by their names in a folder."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ShardData, path_of
from pipeline.data.files.folders import class_folders_in
from pipeline.data.files.listing import read_status
from pipeline.data.files.paths import from_root, printable
from pipeline.data.files.shards.remote import Copies, is_address
from pipeline.errors import UserError

SHARD_SUFFIXES = (".tar", ".parquet")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_MOST_SHARDS = 100_000
_MAX_NAMED = 5
# A word of a file's name for each part, in the order of preference.
_WORDS = {"train": (("train", "training"),), "test": (("test",), ("val", "valid", "validation"))}
LAYOUT = (
    "expected: ROOT/train-*.tar and ROOT/val-*.tar (or test-*, or .parquet, or folders train/ and val/ of "
    "such files), or patterns in data.train_shards and data.test_shards"
)


class Shard(NamedTuple):
    """One shard.

    Attributes:
        path: of the file.
        name: relative to `data.root`, for messages and names of images.
        num_bytes, mtime_ns, identity: as from `read_status`.
    """

    path: Path
    name: str
    num_bytes: int
    mtime_ns: int
    identity: int


def find_shards(part: str, root: Path, config: ShardData, copies: Copies) -> list[Shard]:
    """Find the shards of one part, in the order of their names.

    Args:
        part: `train` or `test`.
        root: `data.root`; if it is an address, the folder of its copies.
        config: the section `data`.
        copies: fetches shards from an address.

    Raises:
        UserError: there are none, or one of them does not exist or is compressed.
    """
    pattern = config.train_shards if part == "train" else config.test_shards
    if pattern is not None:
        key = f"data.{part}_shards"
        names = _by_pattern(key, pattern, root, config.root, copies)
    else:
        key = "data.root"
        names = _by_names(part, root, config.root, copies)
    names = list(dict.fromkeys(names))
    _refuse_compressed(key, names)
    remote = [name for name in names if is_address(name)]
    copied = {
        name: from_root(root, str(path.absolute()))
        for name, path in zip(remote, copies.fetch(key, remote), strict=True)
    }
    return [_shard(key, root, copied.get(name, name)) for name in names]


def first_shard(root: Path) -> str | None:
    """Return the name of a shard in a folder, or in a folder of it; None if there is none."""
    for folder in (root, *_folders_in(root)):
        if folder.is_dir() and (names := _shards_in(folder)):
            return f"{folder.relative_to(root)}/{names[0]}".removeprefix("./")
    return None


def _folders_in(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:  # knows the kind of each entry without asking for it
        folders = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return [root / name for name in sorted(folders)]


def expand_braces(pattern: str) -> list[str]:
    """Return the texts that a pattern with braces stands for.

    >>> expand_braces("{train,val}-{08..10}.tar")[2:4]
    ['train-10.tar', 'val-08.tar']
    """
    texts = [pattern]
    while True:
        expanded = (longer for text in texts for longer in _expand_first(text))
        longer = list(islice(expanded, _MOST_SHARDS + 1))
        if len(longer) > _MOST_SHARDS:
            raise ValueError(f"stands for more than {_MOST_SHARDS:,} shards")
        if longer == texts:
            return list(dict.fromkeys(texts))
        texts = longer


def _expand_first(text: str) -> Iterator[str]:
    """Expand the first pair of braces that holds a comma or two dots; yield the text itself without one."""
    match = re.search(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}", text)
    if match is None:
        yield text
        return
    first, dots, last = match[1].partition("..")
    if "," in match[1] or not dots:
        words: Sequence[str] = match[1].split(",")
    elif abs(int(last) - int(first)) > _MOST_SHARDS:
        raise ValueError(f"stands for more than {_MOST_SHARDS:,} shards")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        low, high = int(first), int(last)
        numbers = range(low, high + 1) if low <= high else range(low, high - 1, -1)
        words = [str(number).zfill(width) for number in numbers]
    for word in words:
        yield text[: match.start()] + word + text[match.end() :]


def _by_pattern(key: str, pattern: str, root: Path, given_root: str, copies: Copies) -> list[str]:
    """Return the names of the shards that a pattern stands for, relative to the root, or addresses."""
    try:
        texts = expand_braces(pattern)
    except ValueError as error:
        raise UserError(f"{key}: {pattern!r} {error}") from None
    names: list[str] = []
    for text in texts:
        if is_address(given_root) and not is_address(text) and not text.startswith("/"):
            text = f"{given_root.rstrip('/')}/{text}"
        names += copies.expand(key, text) if is_address(text) else _local(key, text, root)
    if not names:
        raise UserError(f"{key}: no shard fits {printable(pattern)}; {LAYOUT}")
    return names


def _local(key: str, text: str, root: Path) -> list[str]:
    """Return the shards that one text without braces names: a file, a folder of shards, or a pattern."""
    text = str(path_of(key, text))
    if (root / text).is_dir():
        return [from_root(root, f"{text}/{name}") for name in _shards_in(root / text)]
    if (root / text).exists() or not glob.has_magic(text):
        return [from_root(root, text)]
    found = glob.glob(text, root_dir=root)
    return sorted(from_root(root, name) for name in found if name.endswith((*SHARD_SUFFIXES, *_COMPRESSED)))


def _by_names(part: str, root: Path, given_root: str, copies: Copies) -> list[str]:
    """Return the shards in the root whose names hold a word for the part, or those in such a folder."""
    base = given_root.rstrip("/") + "/" if is_address(given_root) else ""
    every = copies.names_in(given_root) if base else _names_in(root)
    names = _shards_among(every)
    for words in _WORDS[part]:
        fitting = [name for name in names if _holds_word(name, words)]
        if fitting:
            return [base + name for name in fitting]
        for word in (word for word in words if word in every):
            inside = copies.names_in(base + word) if base else _names_in(root / word)
            if shards := _shards_among(inside):
                return [f"{base}{word}/{name}" for name in shards]
    raise _no_shards(part, root, given_root, names or (every if base else []))


def _no_shards(part: str, root: Path, given_root: str, names: Sequence[str]) -> UserError:
    """Return the error of a folder without shards of a part, with what it holds instead."""
    is_local = not is_address(given_root)
    words = " or ".join(word for group in _WORDS[part] for word in group)
    there = ", ".join(map(printable, names[:_MAX_NAMED])) + ", …" * (len(names) > _MAX_NAMED)
    hint = f"; it holds {there}" if names else ""
    if is_local and (root / "train").is_dir() and class_folders_in(root / "train"):
        hint = "; it holds class folders: set data.dataset=folder"
    elif is_local and not names and (inside := first_shard(root)):
        folder = printable(root / inside.rpartition("/")[0])
        hint = f"; it holds {printable(inside)}: set data.root={folder} if all shards are there"
    elif names and not _shards_among(names):
        hint += ": set data.root to the folder of the shards"
    return UserError(f"data.root: no shards with the word {words} in {given_root}{hint}; {LAYOUT}")


def _holds_word(name: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"(^|[^a-z]){word}([^a-z]|$)", name.lower()) for word in words)


def _shards_in(folder: Path) -> list[str]:
    """Return the sorted names of the shards in a folder, compressed ones too."""
    return _shards_among(_names_in(folder))


def _names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder; none if it is no folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _shards_among(names: Sequence[str]) -> list[str]:
    suffixes = (*SHARD_SUFFIXES, *_COMPRESSED)
    return [name for name in names if name.endswith(suffixes) and not name.startswith(".")]


def _refuse_compressed(key: str, names: Sequence[str]) -> None:
    packed = [name for name in names if name.endswith(_COMPRESSED)]
    if packed:
        more = f" and {len(packed) - 1} more" if len(packed) > 1 else ""
        raise UserError(
            f"{key}: {printable(packed[0])}{more}: a compressed tar file can only be read from the start, "
            f"and images are read in random order; {_remedy(packed[0])}"
        )


def _remedy(name: str) -> str:
    command = unpacking(name.rpartition("/")[2] if is_address(name) else name)
    where = "where it is stored, or copy it here and unpack it" if is_address(name) else "first"
    return f"unpack it {where}: {command}"


def unpacking(name: str) -> str:
    """Return the command that removes the compression of a tar file.

    >>> unpacking("train-0.tar.gz")
    'gzip -d train-0.tar.gz'
    """
    tools = {"bz2": "bzip2 -d", "xz": "xz -d", "zst": "zstd -d --rm", "lz4": "lz4 -d --rm"}
    suffix = name.rpartition(".")[2]
    return f"{tools.get(suffix.removeprefix('t'), 'gzip -d')} {printable(name)}"


def _shard(key: str, root: Path, name: str) -> Shard:
    path = root / name
    numbers = read_status(path)
    if numbers[0] < 0:
        raise UserError(f"{key}: there is no file {printable(path)}; {LAYOUT}")
    if not path.name.endswith(SHARD_SUFFIXES):
        raise UserError(
            f"{key}: {printable(path)} is no shard: its name ends neither in .tar nor in .parquet"
        )
    return Shard(path.absolute(), name, *numbers)
