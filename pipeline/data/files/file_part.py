"""Says where the bytes of an image lie: in a file of its own, or in a part of a larger one."""

import hashlib
import os
import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pipeline.atomic_io import sha256


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes of one image inside of a larger file, such as a member of a tar file.

    Attributes:
        path: of the larger file.
        offset: of the first byte of the image.
        num_bytes: of the image.
        name: of the image, for messages; `str` of the part.
    """

    path: Path
    offset: int
    num_bytes: int
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Read the bytes of the image.

        Raises:
            OSError: the file cannot be read, or ends before the image does.
        """
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_at(descriptor, self.num_bytes, self.offset)
        finally:
            os.close(descriptor)


ImageFile = str | Path | FilePart


def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
    """Read so many bytes of an open file, from an offset on.

    Raises:
        OSError: the file cannot be read, or ends before.
    """
    content = os.pread(descriptor, num_bytes, offset)
    if len(content) < num_bytes:
        raise OSError("its file ends before the image does")
    return content


def open_image(file: ImageFile) -> str | Path | BytesIO:
    """Return what Pillow can open: the path of a file, or the bytes of a part of one.

    Raises:
        OSError: the file cannot be read, or is no plain file, or the image is empty.
    """
    if isinstance(file, FilePart):
        num_bytes = file.num_bytes
    else:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a file")  # opening a pipe would wait for ever
        num_bytes = status.st_size
    if not num_bytes:
        raise OSError("the file is empty")
    return BytesIO(file.read()) if isinstance(file, FilePart) else file


def hash_image(file: ImageFile) -> bytes:
    """Return the SHA-256 of the bytes of an image.

    Raises:
        OSError: they cannot be read.
    """
    if isinstance(file, FilePart):
        return hashlib.sha256(file.read()).digest()
    return bytes.fromhex(sha256(Path(file)))
