"""Lists the files of a data set, from class folders or from list files. Opens no image."""

from pathlib import Path

from pipeline.config import FolderData
from pipeline.data.files.class_folders import list_class_folders
from pipeline.data.files.listing import LAYOUT, Listing, check_classes
from pipeline.data.files.path_lists import read_path_lists
from pipeline.errors import UserError


def list_files(root: Path, config: FolderData) -> Listing:
    """List class folders, or the files that `data.train_list` and `data.test_list` name.

    Raises:
        UserError: folders or lists that are not as described in `list_class_folders` and `read_path_lists`.
    """
    try:
        if not root.is_dir():
            raise UserError(f"data.root: there is no folder {root}; {LAYOUT}")
        has_lists = config.train_list is not None and config.test_list is not None
        listing = read_path_lists(root, config) if has_lists else list_class_folders(root)
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None
    check_classes(listing)
    return listing
