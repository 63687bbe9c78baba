"""Gives the encoded bytes of images in shards, without reading them: a shard is mapped into memory."""

import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.datasets.file_set import FileSet

_OTHER_FILES = 512  # that a process may have open beside the shards
_FEWEST_MAPS = 16


class MappedImages:
    """The encoded images of a data set in shards, as views of the mapped files.

    The system reads a part of a mapped file when it is first looked at, which DALI's threads do, without
    Python's lock. The system is told before which parts will be needed.

    Args:
        files: the data set; its images are members of shards.
    """

    def __init__(self, files: FileSet):
        assert files.files.members is not None, "the images are whole files"
        self._files, self._members = files, files.files.members
        self._maps: OrderedDict[Path, tuple[mmap.mmap, np.ndarray]] = OrderedDict()
        self._most_maps = _allow_open_files(len(self._members.shards))

    def views(self, samples: Sequence[int]) -> list[np.ndarray]:
        """Return the bytes of each image: (L,) uint8, read-only.

        Raises:
            TrainingError: a shard cannot be opened, or ends before an image does; names the image.
        """
        views, bad = [], {}
        for sample in samples:
            try:
                views.append(self._view(sample))
            except (OSError, ValueError) as error:
                bad[sample] = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if bad:
            raise self._files.error_of(bad)
        return views

    def _view(self, sample: int) -> np.ndarray:
        if sample in self._files.replaced:
            return np.fromfile(self._files.replaced[sample], np.uint8)
        members = self._members
        mapped, content = self._map(members.shards[members.shard[sample]])
        start = int(members.offset[sample])
        end = start + int(self._files.files.num_bytes[sample])
        if end > mapped.size():  # the size of now: looking at pages beyond the end would kill the process
            raise ValueError("its file ends before the image does")
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, page, end - page)
        return content[start:end]

    def _map(self, path: Path) -> tuple[mmap.mmap, np.ndarray]:
        """Return the map of a shard; the one that was used longest ago is given up if there are too many."""
        if path not in self._maps:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(descriptor)
            self._maps[path] = mapped, np.frombuffer(mapped, np.uint8)
            if len(self._maps) > self._most_maps:
                self._maps.popitem(last=False)
        self._maps.move_to_end(path)
        return self._maps[path]


def _allow_open_files(count: int) -> int:
    """Let the process open so many files, as far as the system allows; return the number that it may open.

    A map keeps its file open, and many systems allow 1,024 open files until a process asks for more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else soft
    return max(min(count, allowed - _OTHER_FILES), _FEWEST_MAPS)
