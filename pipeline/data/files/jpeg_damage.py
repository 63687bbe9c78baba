"""Finds JPEG files that are damaged inside: decoders show such a file, in part with wrong pixels.

libjpeg notices most of this damage, decodes on, and tells it on standard error without the name of the file.
So worker processes decode one image after the other and read what was written there. A worker runs this file
as a script, and imports neither torch nor this package.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.data.files.file_part import ImageFile

_LEAST_SHARE = 256  # files of a worker: below this, its start takes longer than its work
_OF_DAMAGE = (b"Corrupt JPEG data", b"Premature end of JPEG file")  # libjpeg's messages
_NO_DECODER = 3  # exit code of a worker without OpenCV
_NO_ANSWER = "a decoder of JPEG files ended at this file"


def find_damaged_jpegs(files: Sequence["ImageFile"], num_processes: int) -> dict[int, str]:
    """Return the damage that libjpeg finds in images, by index. Other files than JPEG have none.

    Args:
        files: the images; one that cannot be read has no damage here.
        num_processes: workers, at most.
    """
    count = min(num_processes, -(-len(files) // _LEAST_SHARE))
    shares = [range(worker, len(files), count) for worker in range(count)]
    damage: dict[int, str] = {}
    with ThreadPoolExecutor(max(count, 1)) as pool:
        for share, found in zip(shares, pool.map(lambda share: _inspect(files, share), shares), strict=True):
            damage |= {index: text for index, text in zip(share, found, strict=True) if text}
    return dict(sorted(damage.items()))


def _inspect(files: Sequence["ImageFile"], share: Sequence[int]) -> list[str]:
    """Return the damage of some files, an empty text for an intact one."""
    found: list[str] = []
    while len(found) < len(share):
        with tempfile.TemporaryFile() as names:
            names.write(b"\0".join(_describe(files[index]) for index in share[len(found) :]))
            names.seek(0)
            worker = subprocess.run(
                [sys.executable, "-I", __file__], stdin=names, stdout=subprocess.PIPE, check=False
            )
        if worker.returncode == _NO_DECODER:
            return [""] * len(share)
        found += worker.stdout.decode("utf-8", "replace").splitlines()
        if len(found) < len(share):  # the decoder ended the worker at this file
            found.append(_NO_ANSWER)
    return found


def _describe(file: "ImageFile") -> bytes:
    """Return offset, size and path of an image, for a worker; the size -1 means the whole file."""
    if isinstance(file, str | Path):
        return b"0 -1 " + os.fsencode(os.path.abspath(file))
    return f"{file.offset} {file.num_bytes} ".encode() + os.fsencode(file.path)


def _work() -> None:
    """Decode the images that are named on standard input; print a line for each of them."""
    try:
        import cv2
        import numpy as np
    except ImportError:
        sys.exit(_NO_DECODER)
    answers = os.dup(1)
    messages = os.memfd_create("messages")
    os.dup2(messages, 2)
    for image in sys.stdin.buffer.read().split(b"\0"):
        offset, num_bytes, name = image.split(b" ", 2)
        with contextlib.suppress(OSError, cv2.error), open(name, "rb") as file:
            file.seek(int(offset))
            content = file.read(int(num_bytes))
            if content.startswith(b"\xff\xd8\xff"):
                # a small grey picture takes half the time, and needs all of the file
                cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        told = b""
        if os.lseek(messages, 0, os.SEEK_CUR):
            lines = os.pread(messages, 4000, 0).splitlines()
            told = next((line for line in lines if line.startswith(_OF_DAMAGE)), b"")
            os.ftruncate(messages, 0)
            os.lseek(messages, 0, os.SEEK_SET)
        os.write(answers, told + b"\n")


if __name__ == "__main__":
    _work()
