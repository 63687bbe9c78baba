"""Reads from the options which programs take part, and with which further flags."""

import shlex
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers.folder_program import Program
from benchmarks.peers.quickres_train import QuickresTrain
from benchmarks.peers.timm_train import TimmTrain
from benchmarks.peers.torchvision_reference import TorchvisionReference
from pipeline.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_KINDS: dict[str, type[Program]] = {kind.name: kind for kind in (TorchvisionReference, TimmTrain)}
_SUBFOLDERS = ("", "references/classification")


def read_programs(options: Namespace, recipe: str, overrides: Sequence[str]) -> list[Program]:
    """Return our program and those of others, in this order.

    Args:
        options: `peer` and `peer_flags`, lists of NAME=VALUE.
        recipe, overrides: of our runs.

    Raises:
        UserError: a name is not known, or is given twice, or a folder holds no train.py.
    """
    if not options.peer:
        raise UserError("--peer: there is no program to compare with; give --peer timm=DIR")
    flags = dict(_read("--peer-flags", "FLAGS", options.peer_flags))
    ours = QuickresTrain(_ROOT, recipe=str(Path(recipe).resolve()), overrides=tuple(overrides))
    programs: list[Program] = [ours]
    for name, path in _read("--peer", "DIR", options.peer):
        folders = [Path(path, part) for part in _SUBFOLDERS]
        folder = next((folder for folder in folders if (folder / "train.py").is_file()), None)
        if folder is None:
            raise UserError(f"--peer: {path} holds no train.py; give the folder of the script of {name}")
        programs.append(_KINDS[name](folder.resolve(), _words(name, flags.pop(name, ""))))
    for name in flags:
        raise UserError(f"--peer-flags: {name} does not take part; give --peer {name}=DIR too")
    return programs


def _words(name: str, flags: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(flags))
    except ValueError as error:
        message = str(error).lower()
        raise UserError(f"--peer-flags: {name}={flags}: {message}; check the quotation marks") from None


def _read(option: str, value_name: str, items: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each item; a name may be given once."""
    seen = set()
    for item in items:
        name, _, value = item.partition("=")
        if name not in _KINDS or not value:
            raise UserError(f"{option}: {item} is not NAME={value_name} with a name of {', '.join(_KINDS)}")
        if name in seen:
            raise UserError(f"{option}: {name} is given twice; give it once")
        seen.add(name)
        yield name, value
