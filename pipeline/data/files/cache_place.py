"""Says in which folder the cache of a data set is, and how its entries are named."""

import atexit
import hashlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import FileData, path_of
from pipeline.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachePlace:
    """The place of the cache of one data set.

    Attributes:
        folder: of the entries; several data sets can share it.
        owner: the names of the entries of this data set begin with it.
    """

    folder: Path
    owner: str = ""

    @classmethod
    def of(cls, root: Path, config: FileData) -> "CachePlace":
        """Return `data.cache_dir`, by default `ROOT/.quickres`."""
        if config.cache_dir is None:
            return cls(root / ".quickres")
        root = root.resolve()
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        return cls(path_of("data.cache_dir", config.cache_dir), f"{root.name}-{digest}-")

    def of_test_images(self) -> "CachePlace":
        """Return the place for the test images alone."""
        return replace(self, owner=f"{self.owner}test-")

    def writable(self) -> "CachePlace":
        """Return this place, or a folder that is kept until the process ends if it cannot be written.

        A run may have left a cache of all images there, but none of the test images alone.
        """
        parent = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if os.access(parent, os.W_OK):
            return self
        folder = tempfile.mkdtemp(prefix="quickres-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _log.warning("data.cache_dir: %s cannot be written, so the test images are not cached", self.folder)
        return replace(self, folder=Path(folder))

    def prefix(self, kind: str) -> str:
        """Return the beginning of the names of all entries of a kind."""
        return f"{self.owner}{kind}-"

    def entry(self, kind: str, key: str) -> Path:
        """Return the folder of an entry: KEY is a hash of what the entry is computed from."""
        return self.folder / f"{self.prefix(kind)}{key}"


def cannot_write(entry: Path, error: OSError) -> UserError:
    """Return the error of an entry that cannot be written."""
    return UserError(
        f"data.cache_dir: cannot write {entry} ({error.strerror or error}); "
        "set data.cache_dir to a folder with free space and write permission"
    )
