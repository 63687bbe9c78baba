"""Finds class folders, counts the files beside the images, and proposes other folders in a message."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.data.files.image_formats import SUFFIXES
from pipeline.data.files.paths import counted, printable

# Folders that a NAS, an operating system or an archive program makes beside the files: of thumbnails, of
# deleted files, or of metadata.
_SYSTEM_FOLDERS = {
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
    *("$recycle.bin", "system volume information", "lost+found", "__macosx"),
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
_OWN_FOLDER = ".quickres"  # of the cache
_MAX_NAMED = 5


def class_folders_in(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in a folder: all except hidden ones and a system's.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if is_dir(entry) and not entry.name.startswith(".") and not is_of_system(entry.name)
        )


def is_dir(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_of_system(name: str) -> bool:
    """Return True if a system, not a person, makes folders of this name."""
    return name.lower() in _SYSTEM_FOLDERS


class LeftOut:
    """Counts files and folders that are not read, by type."""

    def __init__(self) -> None:
        self._files: Counter[str] = Counter()
        self._folders: Counter[str] = Counter()
        self._hidden_classes: list[str] = []

    def add_file(self, name: str) -> None:
        """Count a file that is no image; files that a system makes do not count."""
        if name.startswith("._") or name.lower() in _SYSTEM_FILES:
            return
        suffix = os.path.splitext(name)[1].lower()
        if not name.startswith("."):
            self._files[printable(suffix) or "without a suffix"] += 1
        elif suffix in SUFFIXES:
            self._files[f"hidden {suffix}"] += 1

    def add_folder(self, name: str) -> None:
        """Count a folder that is hidden, or that a system makes."""
        self._folders[name] += 1

    def add_beside_classes(self, folder: Path) -> None:
        """Count what stands beside the class folders: files, hidden folders, and a system's folders."""
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_dir(entry):
                    self.add_file(entry.name)
                elif is_of_system(entry.name):
                    self.add_folder(entry.name)
                elif entry.name.startswith(".") and entry.name != _OWN_FOLDER:
                    self._hidden_classes.append(entry.path)

    def update(self, other: "LeftOut") -> None:
        """Add the counts of another folder."""
        self._files.update(other._files)
        self._folders.update(other._folders)
        self._hidden_classes += other._hidden_classes

    def describe(self, root: Path) -> Iterator[str]:
        """Yield a line for all files and folders that were left out, and one for hidden class folders."""
        parts = [f"{count:,} {kind}" for kind, count in self._files.most_common()]
        parts += [
            f"{counted(count, 'folder')} {printable(name)}" for name, count in self._folders.most_common()
        ]
        if parts:
            yield (
                f"data.root: left out in {printable(root)}: {', '.join(parts)}; images are read if their "
                f"names end in {' '.join(SUFFIXES)}"
            )
        if self._hidden_classes:
            named = ", ".join(map(printable, sorted(self._hidden_classes)[:_MAX_NAMED]))
            yield (
                f"data.root: folders whose names begin with a dot are no classes: {named}; "
                "rename a folder that is one"
            )


def propose_folders(root: Path, part: str, taken: Collection[str], classes: Collection[str] = ()) -> str:
    """Name the folders that could be meant by `data.train_folder` or `data.test_folder`, for a message.

    Args:
        root: `data.root`.
        part: `train` or `test`.
        taken: the folders that are in use.
        classes: if given, only folders that hold one of these classes are named.

    Returns:
        The end of a sentence; empty if there is no such folder.
    """
    try:
        names = [name for name in class_folders_in(root) if name not in taken]
        held = {name: class_folders_in(root / name) for name in names}
    except OSError:
        return ""
    names = [name for name in names if held[name] and (not classes or not {*held[name]}.isdisjoint(classes))]
    if not names:
        return ""
    usual = ("train",) if part == "train" else ("test", "val")
    names.sort(key=lambda name: not name.lower().startswith(usual))
    named = ", ".join(f"{printable(name)}/" for name in names[:_MAX_NAMED])
    return f"; or set data.{part}_folder={printable(names[0])} (class folders are in {named})"
