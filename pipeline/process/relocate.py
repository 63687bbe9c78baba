"""Corrects the scripts of a copied .venv, which name the folder that it came from.

`python -m pipeline.process.relocate` does so for the .venv of the current folder; launch.sh calls it.
"""

import re
from pathlib import Path

# bin/tensorboard and the like begin with the path of Python; with a long path, or one with spaces, the shell
# starts Python from the second line
_FIRST_LINE = re.compile(rb"\A#!/[^\n]*/\.venv/bin/(python[\d.]*)\n")
_SECOND_LINE = re.compile(rb"\A#!/bin/sh\n'''exec' [^\n]*/\.venv/bin/(python[\d.]*)['\"]? [^\n]*\n' '''\n")
_ACTIVATE = re.compile(rb"(?<=[='\" ])/[^='\"\n]*/\.venv(?=['\")]?$)", re.MULTILINE)


def relocate(venv: Path) -> None:
    """Let all scripts of a virtual environment, whose folder is called `.venv`, start its own Python."""
    path = bytes(venv.resolve())

    def start(found: re.Match[bytes]) -> bytes:
        return b"#!/bin/sh\n'''exec' '%s/bin/%s' \"$0\" \"$@\"\n' '''\n" % (path, found[1])

    for script in (venv / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        old = script.read_bytes()
        if b"\0" in old or b"#!%s/bin/" % path in old:
            continue
        new = _SECOND_LINE.sub(start, _FIRST_LINE.sub(start, old))
        if script.name.startswith("activate"):
            new = _ACTIVATE.sub(lambda _: path, new)
        if new != old:
            script.write_bytes(new)


if __name__ == "__main__":
    relocate(Path(".venv"))
