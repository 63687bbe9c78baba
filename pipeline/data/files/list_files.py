"""Lists the files of a data set, from class folders or from list files. Opens no image."""

import logging
from pathlib import Path

from pipeline.config import FolderData
from pipeline.data.files.class_folders import list_class_folders
from pipeline.data.files.copies import find_copies
from pipeline.data.files.listing import LAYOUT, Listing, find_problems, find_warnings
from pipeline.data.files.path_lists import read_path_lists
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


def list_files(root: Path, config: FolderData, *, is_main: bool = True) -> Listing:
    """List class folders, or the files that `data.train_list` and `data.test_list` name.

    Args:
        root: `data.root`, expanded.
        config: the section `data`.
        is_main: True if this process gives the warnings.

    Raises:
        UserError: folders or lists that are not as described in `list_class_folders` and `read_path_lists`.
    """
    listing = find_files(root, config)
    for problem in find_problems(listing):
        raise UserError(problem)
    if is_main:
        same_files = {part: files.identity for part, files in listing.parts.items()}
        for warning in (*find_warnings(listing), *find_copies(listing, same_files)):
            _log.warning("%s", warning)
    return listing


def find_files(root: Path, config: FolderData) -> Listing:
    """List the files as `list_files` does, but accept a listing that cannot be trained on.

    Raises:
        UserError: there are no training classes, or a list file cannot be read.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}; {LAYOUT}")
        has_lists = config.train_list is not None and config.test_list is not None
        return read_path_lists(root, config) if has_lists else list_class_folders(root, config)
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None
