"""Lists the files of a data set: from class folders, list files or shards. Opens no image."""

import logging
from pathlib import Path

from pipeline.config import FileData, FolderData, ShardData, path_of
from pipeline.data.files.class_folders import list_class_folders
from pipeline.data.files.copies import find_copies
from pipeline.data.files.listing import LAYOUT, Listing, find_problems, find_warnings
from pipeline.data.files.path_lists import read_path_lists
from pipeline.data.files.paths import printable
from pipeline.data.files.shards.listing import list_shards, root_of_shards
from pipeline.data.files.shards.patterns import first_shard
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


def root_of(config: FileData) -> Path:
    """Return `data.root`, expanded; if it is an address of shards, the folder of their copies.

    Raises:
        UserError: the home folder in it is not known.
    """
    return root_of_shards(config) if isinstance(config, ShardData) else path_of("data.root", config.root)


def list_files(config: FileData, *, is_main: bool = True, writes: bool = True) -> Listing:
    """List class folders, the files that `data.train_list` and `data.test_list` name, or shards.

    Args:
        config: the section `data`.
        is_main: True if this process gives the warnings, and may fetch shards and write their index.
        writes: False: shards are not fetched, and their index is not written.

    Raises:
        UserError: the files are not as described in `list_class_folders`, `read_path_lists` and
            `list_shards`.
    """
    listing = find_files(config, is_main=is_main, writes=writes)
    for problem in find_problems(listing):
        raise UserError(problem)
    if is_main:
        same_files = {part: files.identity for part, files in listing.parts.items()}
        for warning in (*find_warnings(listing), *find_copies(listing, same_files)):
            _log.warning("%s", warning)
    return listing


def find_files(config: FileData, *, is_main: bool = True, writes: bool = True) -> Listing:
    """List the files as `list_files` does, but accept a listing that cannot be trained on.

    Raises:
        UserError: there are no training classes, or a list file or a shard cannot be read.
    """
    root = root_of(config)
    try:
        if isinstance(config, ShardData):
            return list_shards(root, config, is_main=is_main, writes=writes)
        assert isinstance(config, FolderData), f"{type(config)} has no files"
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}; {LAYOUT}")
        has_lists = config.train_list is not None and config.test_list is not None
        return read_path_lists(root, config) if has_lists else _list_class_folders(root, config)
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None


def _list_class_folders(root: Path, config: FolderData) -> Listing:
    try:
        return list_class_folders(root, config)
    except UserError as error:
        shard = first_shard(root)
        if shard is None:
            raise
        raise UserError(f"{error}; or set data.dataset=shards, as for {printable(shard)}") from None
