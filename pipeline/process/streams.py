"""Standard streams that never end a command: closed ones, broken pipes, full disks, narrow encodings."""

import codecs
import errno
import io
import os
import sys
from typing import Any

from pipeline.process.exit import silence

_ENCODING_ERRORS = "quickres.escape"
# the reader of the output has gone: `| head -1` has seen enough, or the terminal has been closed
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.ENXIO)


def make_streams_safe() -> None:
    """Prepare stdin, stdout and stderr of this process; call this before anything else is opened.

    A closed stream (`>&-`, as some schedulers start programs) becomes /dev/null. Otherwise the next file that
    is opened would get its number, and with it what is printed. A character that the encoding of a stream
    does not have is printed as an escape. A stream that cannot be written is dropped, and the work goes on.
    """
    codecs.register_error(_ENCODING_ERRORS, _escape)
    _open_closed_streams()
    sys.stdin = sys.stdin or io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = _safe(getattr(sys, name), descriptor)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def lost_output() -> OSError | None:
    """Return the error by which output was lost, such as a full disk.

    None if all was written, or if nobody reads it.
    """
    error = sys.stdout.lost if isinstance(sys.stdout, SafeStream) else None
    return None if error is None or error.errno in _NOBODY_READS else error


class SafeStream(io.TextIOWrapper):
    """A text stream that is silenced by the first error of writing.

    Attributes:
        lost: that error.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.lost = self.lost or error
        silence(self)


def _open_closed_streams() -> None:
    """Let the descriptors 0, 1 and 2 name /dev/null where they are closed."""
    descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _safe(stream: Any, descriptor: int) -> SafeStream:
    """Return a stream to the file of this one, or to DESCRIPTOR if Python found that closed."""
    if stream is None:
        return SafeStream(io.FileIO(descriptor, "w", closefd=False), "utf-8", _ENCODING_ERRORS)
    encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
    return SafeStream(
        stream.detach(), encoding, _ENCODING_ERRORS, line_buffering=lines, write_through=through
    )


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Write a byte of a file name that is not UTF-8 as `\xe9`, any other character as Python escapes it."""
    assert isinstance(error, UnicodeEncodeError)
    characters = error.object[error.start : error.end]
    return "".join(map(_escaped, characters)), error.end


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # Python's sign for a byte, PEP 383
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode()
