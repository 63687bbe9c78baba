"""Lists the test images alone, for a network that has been trained: no training image is looked at."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import FileData, FolderData, ShardData, path_of
from pipeline.data.files.cache_place import CachePlace
from pipeline.data.files.class_folders import list_test_folder
from pipeline.data.files.class_names import read_class_names
from pipeline.data.files.list_files import root_of
from pipeline.data.files.listing import LAYOUT, Listing, find_problems, find_warnings, name_classes
from pipeline.data.files.path_lists import read_test_list
from pipeline.data.files.shards.listing import NumberClasses, list_test_shards
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


def list_test_files(config: FileData, class_names: Sequence[str], place: CachePlace) -> Listing:
    """List the files of `data.test_folder`, or those that `data.test_list` names, or in the test shards.

    Args:
        root: `data.root`.
        config: the section `data`.
        class_names: of the network, in label order. A class is found by its name, or by the name that
            `data.class_names` gives it.

    Returns:
        A listing with the part `test` alone. Its classes are those of the network.

    Raises:
        UserError: there is no test image, or one of a class that the network does not know.
    """

    def number(found: Sequence[str], used: Sequence[str]) -> dict[str, int]:
        return _number_classes(found, used, config, class_names)

    root = root_of(config)
    try:
        if isinstance(config, ShardData):
            listing = list_test_shards(root, config, number, place)
        else:
            listing = _list_folder_or_list(root, config, number)
    except OSError as error:
        raise UserError(f"data.root: cannot list {error.filename} ({error.strerror})") from None
    listing = replace(listing, classes=tuple(class_names))
    for problem in find_problems(listing):
        raise UserError(problem)
    for warning in find_warnings(listing):
        _log.warning("%s", warning)
    return listing


def _list_folder_or_list(root: Path, config: FileData, number: NumberClasses) -> Listing:
    """List the files of a folder or of a list file; the listing has no classes."""
    assert isinstance(config, FolderData), "shards are listed elsewhere"
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}; {LAYOUT}")
    if config.test_list is not None:
        source, files, lines = read_test_list(root, config, number)
        return Listing(root, {"test": files}, (), {"test": source}, "lists", {"test": lines})
    source, files, warnings = list_test_folder(root, config, number)
    return Listing(root, {"test": files}, (), {"test": source}, warnings=warnings)


def _number_classes(
    found: Sequence[str], used: Sequence[str], config: FileData, class_names: Sequence[str]
) -> dict[str, int]:
    """Return the label of each class.

    Args:
        found: the classes of the test images in order, those without an image too.
        used: those with an image.
        config, class_names: as for `list_test_files`.
    """
    key = "data.test_shards"
    if isinstance(config, FolderData):
        key = "data.root" if config.test_list is None else "data.test_list"

    def shown(names: Sequence[str]) -> Sequence[str]:
        if config.class_names is None:
            return names
        return read_class_names(path_of("data.class_names", config.class_names), names)

    if len(found) == len(class_names) and tuple(shown(found)) == tuple(class_names):
        return {name: label for label, name in enumerate(found)}
    names = dict(zip(used, shown(used), strict=True))
    unknown = [name for name, title in names.items() if title not in class_names]
    if unknown:
        raise UserError(
            f"{key}: the test images are of {name_classes(unknown)}, but the network was trained on "
            f"{name_classes(class_names)}; give the data set of the run, or remove the other images"
        )
    counts = Counter(class_names)
    repeated = [name for name, title in names.items() if counts[title] > 1]
    if repeated:
        raise UserError(
            f"{key}: {name_classes(repeated)}: several classes of the network have this name, by "
            "data.class_names; add a test image, or an empty folder, of every class to tell them apart"
        )
    return {name: list(class_names).index(title) for name, title in names.items()}
